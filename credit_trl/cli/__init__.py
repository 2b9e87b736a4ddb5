"""The command line: the table of methods, the options of `train.py` and `evaluate.py`, and what a mistake is."""

from .methods import METHODS, Method
from .usage import UsageError

__all__ = ["METHODS", "Method", "UsageError"]
