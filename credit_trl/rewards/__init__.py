"""Verifiable rewards in TRL's reward-function signature, for conversational and for plain-string completions."""

from ..data.golds import choice_gold, math_gold, yes_no_gold
from ..data.latex import boxed_spans
from .answers import (
    RewardFunction,
    choice_reward,
    completion_text,
    extract_answer,
    extract_choice,
    extract_yes_no,
    format_reward,
    stated_answer,
    task_reward,
    yes_no_reward,
)
from .check import check_rewards
from .check_report import RewardReport, reward_warning
from .code import code_reward, extract_code, make_code_reward, read_tests
from .countdown import countdown_reward
from .mathematics import accuracy_reward, math_answer
from .registry import REWARDS, check_columns, load_reward

__all__ = [
    "REWARDS",
    "RewardFunction",
    "RewardReport",
    "accuracy_reward",
    "boxed_spans",
    "check_columns",
    "check_rewards",
    "choice_gold",
    "choice_reward",
    "code_reward",
    "completion_text",
    "countdown_reward",
    "extract_answer",
    "extract_choice",
    "extract_code",
    "extract_yes_no",
    "format_reward",
    "load_reward",
    "make_code_reward",
    "math_answer",
    "math_gold",
    "read_tests",
    "reward_warning",
    "stated_answer",
    "task_reward",
    "yes_no_gold",
    "yes_no_reward",
]
