"""Data sets as TRL's trainers want them."""

from .loading import default_reward, load_data
from .public_datasets import BOXED_INSTRUCTION, DATASETS, KnownDataset, known_dataset
from .reasoning_gym import REASONING_GYM, score_task

__all__ = [
    "BOXED_INSTRUCTION",
    "DATASETS",
    "REASONING_GYM",
    "KnownDataset",
    "default_reward",
    "known_dataset",
    "load_data",
    "score_task",
]
