"""What every trainer is, whatever it does with credit."""

from .config import CreditConfig
from .trainer import CreditTrainer

__all__ = [
    "CreditConfig",
    "CreditTrainer",
]
