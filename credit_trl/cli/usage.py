"""Tell mistakes in what a user typed, printed in one line, from other errors, which keep their traceback."""

import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .advice import advised


class UsageError(ValueError):
    """Report what a user typed and can mend: an option, a file, the name of a model or of a reward."""


@contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Raise `UsageError` in place of errors of `kinds`, around a call that raises them for what was typed."""
    try:
        yield
    except kinds as error:
        raise UsageError(advised(str(error))) from error


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Add `advice` below the message of an error that says that memory is full, on a GPU or not."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if full or "can't allocate memory" in str(error):  # what PyTorch says on a CPU, as a plain RuntimeError
            error.add_note(advice)
        raise


def one_line(error: UsageError) -> str:
    """Return the message of `error` without its line breaks."""
    return " ".join(str(error).split())


def read_mapping(option: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """Return the mapping that `value` is, or that it holds as JSON; None stays None.

    Raises `UsageError`, which names `option`, for anything else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UsageError(f"{option} is no JSON object: {value!r} ({error})") from error
    if value is not None and not isinstance(value, dict):
        raise UsageError(f"{option} must be a mapping of option: value, got {value!r}")
    return value


def check_model_folder(model: str) -> None:
    """Raise `UsageError` if `model` reads as the path of a folder and there is none."""
    if model.startswith((".", "/", "~", "models/", "runs/")) and not Path(model).is_dir():
        raise UsageError(f"there is no model folder {model}")


def from_hub(kind: str, name: str, error: Exception) -> UsageError:
    """Return the error for a model or a data set, the `kind`, that is not here and could not be had from the hub.

    `name` that is a path is of a file or folder that is here and cannot be read.
    """
    where = "" if Path(name).exists() else f", which is no path in {Path.cwd()}, from the hub"
    return UsageError(advised(f"cannot load the {kind} {name}{where}: {error}"))


def refuse_unknown(words: list[str], names: Sequence[str], where: str = "", owners: Sequence[str] = ()) -> None:
    """Raise `UsageError` for words that a parser left over, and suggest the option that was meant.

    Args:
        words: what was left over; the first one is reported.
        names: the options that there are.
        where: goes behind the option in the message, such as " with --method srpo".
        owners: the methods that have the option, where this one has not.
    """
    if not words:
        return
    word = words[0]
    option, equals, _ = word.lstrip("-").partition("=")
    if not word.startswith("--"):
        if word.endswith((".yaml", ".yml")):
            meant = f"--config {word}"
        elif word.startswith("-") or (equals and closest(option, names)):
            meant = "--" + word.lstrip("-").replace(option, closest(option, names) or option, 1)
        else:
            meant = f"--OPTION {word}"
        raise UsageError(f"{word!r} belongs to no option; did you mean {meant}?")
    close = closest(option, names)
    if owners:
        hint = f"it belongs to {', '.join(owners)}"
    elif close:
        hint = f"did you mean {close}?"
    else:
        hint = "--help lists all of them"
    raise UsageError(f"there is no option {option!r}{where}; {hint}")


def closest(option: str, names: Sequence[str]) -> str | None:
    """Return the name that `option` was meant to be, or None where none is near."""
    parts = [name for name in names if name.startswith(f"{option}_") or option.startswith(f"{name}_")]
    return next(iter([*parts, *difflib.get_close_matches(option, names, n=1)]), None)
