"""Mistakes in what a user typed, which the scripts print in one line; every other error keeps its traceback."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class UsageError(ValueError):
    """Report what a user typed and can mend: an option, a file, the name of a model or of a reward."""


@contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Raise `UsageError` in place of errors of `kinds`, around a call that raises them for what was typed."""
    try:
        yield
    except kinds as error:
        raise UsageError(str(error)) from error


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
