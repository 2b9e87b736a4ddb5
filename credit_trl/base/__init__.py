"""Provide what every trainer is, whatever it does with credit."""

from .config import CreditConfig
from .resume import ExactResumeMixin
from .trainer import CreditTrainer, takes_trl_arguments

__all__ = [
    "CreditConfig",
    "CreditTrainer",
    "ExactResumeMixin",
    "takes_trl_arguments",
]
