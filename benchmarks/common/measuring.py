"""Provide what the trainers' benchmarks share: quiet settings, methods that take turns, ratios within a turn."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

Figures = TypeVar("Figures")

# Training arguments with which nothing is saved, printed or reported, and everything is float32.
QUIET = dict(save_strategy="no", report_to="none", bf16=False, gradient_checkpointing=False, disable_tqdm=True)


def prepare(threads: int = 1) -> None:
    torch.set_num_threads(threads)
    for name in ("credit_trl", "accelerate", "trl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()


def in_turns(methods: Iterable[str], turns: int, run: Callable[[str], Figures]) -> dict[str, list[Figures]]:
    """Return what `run` returns for every method in every turn. The method that begins a turn rotates."""
    order = list(methods)
    results: dict[str, list[Figures]] = {method: [] for method in order}
    with tqdm(total=turns * len(order)) as progress:
        for turn in range(turns):
            for method in order[turn % len(order) :] + order[: turn % len(order)]:
                progress.set_description(method)
                results[method].append(run(method))
                progress.update()
    return results


def ratio_quartiles(
    name: str, runs: Sequence[dict[str, float]], reference: Sequence[dict[str, float]]
) -> tuple[float, ...]:
    """Return the quartiles (25%, 50%, 75%) of the figure `name`, divided by the reference's in the same turn."""
    ratios = [run[name] / baseline[name] for run, baseline in zip(runs, reference, strict=True)]
    return tuple(round(float(value), 4) for value in np.percentile(ratios, (25, 50, 75)))


def ratio_columns(name: str, runs: Sequence[dict[str, float]], reference: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the median of the seconds `name`, and the quartiles of their ratio to the reference's in the same turn."""
    low, middle, high = ratio_quartiles(name, runs, reference)
    seconds = round(median(run[name] for run in runs), 4)
    return {f"{name}_seconds": seconds, f"{name}_ratio": middle, f"{name}_quartiles": [low, high]}


def median_interval(values: Sequence[float]) -> list[float]:
    """Return the 95% percentile bootstrap interval of the median, over 10,000 resamples that are always the same."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (10_000, len(values)))
    return [round(float(end), 4) for end in np.percentile(np.median(drawn, axis=1), (2.5, 97.5))]


def processor() -> str:
    """Return Linux's name of the CPU."""
    return re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[1]


def compact_json(value: Any) -> str:
    """Return `value` as JSON with a list of numbers or texts on one line. Raises `ValueError` for NaN and infinity."""
    text = json.dumps(value, indent=1, allow_nan=False)
    return re.sub(r"\[([^\[\]{}]*)\]", lambda match: "[" + " ".join(match[1].split()) + "]", text) + "\n"


def now() -> float:
    """Return the time when what was given to the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepClock(TrainerCallback):
    """Measure wall and CPU seconds of every optimizer step, from the request for its batch to its end."""

    def __init__(self):
        self.steps: list[tuple[float, float]] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append((time.perf_counter() - self.start[0], time.process_time() - self.start[1]))
