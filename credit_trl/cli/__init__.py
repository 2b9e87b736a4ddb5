"""Read the command line: the table of methods, the options of both scripts, and errors in what a user typed."""

from .methods import METHODS, Method
from .usage import UsageError

__all__ = ["METHODS", "Method", "UsageError"]
