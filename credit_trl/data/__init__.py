"""Data sets as TRL's trainers want them."""

from .known import BOXED_INSTRUCTION, DATASETS, KnownDataset, known_dataset
from .loading import load_data
from .reasoning_gym import REASONING_GYM, score_task

__all__ = [
    "BOXED_INSTRUCTION",
    "DATASETS",
    "REASONING_GYM",
    "KnownDataset",
    "known_dataset",
    "load_data",
    "score_task",
]
