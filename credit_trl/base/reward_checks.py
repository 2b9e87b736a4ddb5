"""Name the reward function and the completion where a reward is no number: TRL's own error names neither."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from trl.trainer.utils import is_async_callable


def checked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return `function`, a reward function in TRL's signature, with its rewards checked; a reward model as it is.

    Raises `TypeError` where the function does not take its arguments, the rewards are not a sequence, or one of them is
    neither a number nor None. TRL itself says how many rewards there must be.
    """
    if isinstance(function, nn.Module):
        return function
    if is_async_callable(function):

        async def awaited(**columns):
            with explained(function, name, columns):
                rewards = await function(**columns)
            return check_rewards(rewards, name)

        return awaited

    def called(**columns):
        with explained(function, name, columns):
            rewards = function(**columns)
        return check_rewards(rewards, name)

    return called


@contextmanager
def explained(function: Callable[..., Any], name: str, columns: dict[str, Any]) -> Iterator[None]:
    """Raise `TypeError` with what to do where a call of `function` fails because it does not take `columns`."""
    try:
        yield
    except TypeError as error:
        with suppress(ValueError):  # a function in C may have no signature
            try:
                # What a decorated function hands on is its own: its signature says nothing of the call that failed.
                inspect.signature(function, follow_wrapped=False).bind(**columns)
            except TypeError as mismatch:
                raise TypeError(
                    f"The reward function '{name}' does not take what it is called with: {mismatch}. It gets "
                    f"{', '.join(columns)}. Columns of the data set go by their names, so rename the column that it "
                    "needs (rename_column), and let it take the others as **kwargs."
                ) from error
        raise


def check_rewards(rewards: Any, name: str) -> list:
    """Return the rewards of the function `name` as a list, one for each completion.

    Raises `TypeError` that names the function, and the completion's position in the batch.
    """
    if isinstance(rewards, str | bytes | dict) or not hasattr(rewards, "__iter__"):
        raise TypeError(
            f"The reward function '{name}' returned {describe(rewards)}. It must return a list with a number, or None, "
            "for each completion."
        )
    rewards = list(rewards)
    for position, reward in enumerate(rewards):
        if not (reward is None or isinstance(reward, int | float) or is_number(reward)):
            raise TypeError(
                f"The reward function '{name}' returned {describe(reward)} for completion {position} of the "
                f"{len(rewards)} that it was given. A reward must be a number, or None where it does not apply."
            )
    return rewards


def is_number(reward: Any) -> bool:
    """Return whether torch takes `reward` for one number, as it does NumPy's scalars and tensors of one element."""
    try:
        return torch.tensor([reward], dtype=torch.float32).numel() == 1
    except (TypeError, ValueError, RuntimeError):
        return False


def describe(value: Any) -> str:
    """Return a value's type and the beginning of its text."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
