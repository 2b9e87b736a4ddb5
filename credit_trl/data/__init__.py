"""Data sets as TRL's trainers want them."""

from .loading import BOXED_INSTRUCTION, load_data
from .reasoning_gym import REASONING_GYM, score_task

__all__ = [
    "BOXED_INSTRUCTION",
    "REASONING_GYM",
    "load_data",
    "score_task",
]
