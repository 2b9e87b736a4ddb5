"""The tasks of reasoning-gym: their problems as a data set, and the score that a task gives an answer."""

import dataclasses
import difflib
import json
from functools import lru_cache
from typing import Any

from datasets import Dataset

from .reasoning_gym_answers import scorable

REASONING_GYM = "reasoning-gym/"


# What parsing a text and computing with what it holds can raise: the answer was of the wrong kind. Scorers catch most
# of it themselves. Everything else is no fault of the answer and keeps its traceback.
_WRONG_KIND = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def score_task(spec: str, answer: str) -> float:
    """Return the score, in [0, 1], that the reasoning-gym task gives `answer`.

    `spec` is the content of a row's column `task`. No answer raises, runs as code or takes long: an answer on which the
    task's scorer fails scores 0, and `scorable` says what reaches it.
    """
    fields = json.loads(spec)
    index = fields.pop("index")
    task = _make_task(json.dumps(fields))
    entry = _entry(task, index)
    return max(_score(task, entry, reading) for reading in _readings(answer))


def _score(task, entry: dict[str, Any], answer: str) -> float:
    scorer = entry["metadata"]["source_dataset"]  # "composite" hands answers on to it
    try:
        score = float(task.score_answer(scorable(scorer, answer, entry), entry))
    except _WRONG_KIND:
        return 0.0
    return score if 0 <= score <= 1 else 0.0  # nan is neither


def _readings(answer: str) -> list[str]:
    """Return `answer` as it stands, and without the dollar signs or the bold type around it, or its full stop.

    Which of them is meant depends on the task: fractions may come with their dollars, powers are written with `**`.
    """
    readings = [answer, answer[:-1].rstrip()] if answer.endswith(".") else [answer]
    for mark in ("$", "**"):
        if len(answer) > 2 * len(mark) and answer.startswith(mark) and answer.endswith(mark):
            readings.append(answer[len(mark) : -len(mark)].strip())
    return readings


def _make_tasks(task_name: str, size: int, seed: int, options: dict[str, Any]) -> Dataset:
    # A row carries the seed and not the problem's metadata: those hold objects that JSON does not bring back.
    spec = {"name": task_name, "size": size, "seed": seed, "options": options}
    task = _make_task(json.dumps(spec))
    rows = [
        {"prompt": entry["question"], "solution": entry["answer"], "task": json.dumps({**spec, "index": index})}
        for index, entry in enumerate(_entry(task, index) for index in range(size))
    ]
    return Dataset.from_list(rows)


@lru_cache(maxsize=64)
def _make_task(spec: str):
    """Return the reasoning-gym data set of a row's column `task` without its index."""
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise ValueError(f"{REASONING_GYM}<task> needs a package: pip install reasoning-gym") from error

    fields = json.loads(spec)
    name, options = fields["name"], fields["options"]
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=5, cutoff=0.3)
        raise ValueError(
            f"reasoning-gym has no task {name!r}. Closest of its {len(DATASETS)}: {', '.join(sorted(close)) or 'none'}"
        )
    known = [field.name for field in dataclasses.fields(DATASETS[name][1]) if field.name not in ("seed", "size")]
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ValueError(f"{REASONING_GYM}{name} has no option {', '.join(unknown)}. It has {', '.join(known)}")
    return _call(REASONING_GYM + name, create_dataset, name, size=fields["size"], seed=fields["seed"], **options)


@lru_cache(maxsize=4096)  # some tasks search for seconds to make a problem, and a group scores the same one many times
def _entry(task, index: int) -> dict[str, Any]:
    return task[index]


def _call(what: str, function, *positional, **options):
    """Call `function` and turn the ways in which it rejects its options into a `ValueError`."""
    try:
        return function(*positional, **options)
    except (AssertionError, TypeError) as error:
        raise ValueError(f"{what} rejects its options {options}: {error or type(error).__name__}") from error
