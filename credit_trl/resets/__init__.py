"""Train with reset groups, which restart failed completions at one of their steps: SRPO and RRPO."""

from .advantages import group_advantages
from .config import SRPOConfig
from .groups import GroupPlan, Seed, Slot, check_split, furthest_failures, plan_groups, split_group
from .localization import DEFAULT_TEMPLATE, FailedCompletion, format_localization_prompt, parse_localization
from .localizers import ChatLocalizer, PRMLocalizer
from .records import CompletionRecord, SeedRecord
from .reset_step import Reset, choose_reset
from .steps import Step, split_steps
from .trainer import SRPOTrainer

__all__ = [
    "DEFAULT_TEMPLATE",
    "ChatLocalizer",
    "CompletionRecord",
    "FailedCompletion",
    "GroupPlan",
    "PRMLocalizer",
    "Reset",
    "SRPOConfig",
    "SRPOTrainer",
    "Seed",
    "SeedRecord",
    "Slot",
    "Step",
    "check_split",
    "choose_reset",
    "format_localization_prompt",
    "furthest_failures",
    "group_advantages",
    "parse_localization",
    "plan_groups",
    "split_group",
    "split_steps",
]
