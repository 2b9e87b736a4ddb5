"""Say how good a localizer's answers are, where the truth about each failure is known. No model."""

from collections.abc import Sequence

import numpy as np

from benchmarks.common.methods import noisy_oracle
from benchmarks.localizers.policy import CANDIDATES, Failure
from credit_trl.resets.groups import furthest_failures, plan_groups
from credit_trl.resets.localization import call_localizer
from credit_trl.resets.reset_step import choose_reset

RESAMPLES = 2000
SELECTIONS = ("random", "furthest")  # values of `seed_selection`

Answers = list[int | None]  # 1-based step that a localizer names of each failure; None where it names none


def mean_interval(values: np.ndarray, prompts: np.ndarray) -> list[float]:
    """Return the mean of `values` over failures and its 95% bootstrap interval, which resamples whole problems.

    Args:
        values: (failures,) or (failures, n); with n columns their mean is what counts.
        prompts: (failures,) each failure's problem. Failures of one problem often go wrong at the same step.
    """
    if not len(values):
        return [float("nan")] * 3
    _, groups = np.unique(prompts, return_inverse=True)
    per_failure = np.asarray(values, dtype=float).reshape(len(values), -1).mean(1)
    sums, counts = np.bincount(groups, per_failure), np.bincount(groups)
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return [round(float(value), 4) for value in (per_failure.mean(), *np.percentile(means, (2.5, 97.5)))]


def hit_rate_of_chance(failures: Sequence[Failure]) -> float:
    """Return how often a random step is the first wrong one."""
    return float(np.mean([0 if failure.error is None else 1 / len(failure.steps) for failure in failures]))


def effective_hit_rate(failures: Sequence[Failure], rate: float) -> float:
    """Return the hit rate of the noisy oracle, whose random steps are at times the right ones."""
    known = float(np.mean([failure.error is not None for failure in failures]))
    return rate * known + (1 - rate) * hit_rate_of_chance(failures)


def chance_quality(failures: Sequence[Failure]) -> dict[str, list[float]]:
    """Return the expected quality of random steps, as `quality` does for answers."""
    prompts = np.array([failure.prompt for failure in failures])
    hits, clean, distance = [], [], []
    for failure in failures:
        steps = np.arange(1, len(failure.steps) + 1)
        error = failure.error or len(steps) + 1
        hits.append(np.mean(steps == error))
        clean.append(np.mean(steps <= error))
        distance.append(np.abs(steps - error).mean())
    columns = {"hit_rate": hits, "clean_rate": clean, "distance": distance}
    return {name: mean_interval(np.array(values), prompts) for name, values in columns.items()}


def quality(failures: Sequence[Failure], named: Sequence[int | None]) -> dict[str, list[float]]:
    """Return how often answers name the first wrong step, or one after a clean prefix, and how far off they are.

    Every figure is a mean with its interval. An answer that names no step is a miss; `distance`, in steps, and `late`,
    the share that names a step after the error, are of answers that name one.
    """
    prompts = np.array([failure.prompt for failure in failures])
    error = np.array([failure.error or len(failure.steps) + 1 for failure in failures])
    step = np.array([answer or 0 for answer in named])
    read = step > 0
    result = {
        "parse_rate": mean_interval(read, prompts),
        "hit_rate": mean_interval(step == error, prompts),
        "clean_rate": mean_interval(read & (step <= error), prompts),
        "distance": mean_interval(np.abs(step - error)[read], prompts[read]),
        "late": mean_interval((step > error)[read], prompts[read]),
    }
    for selection in SELECTIONS:
        chosen = seeds(failures, named, selection)
        result[f"hit_rate_cut_{selection}"] = mean_interval((step == error)[chosen], prompts[chosen])
    return result


def seeds(failures: Sequence[Failure], named: Sequence[int | None], selection: str, draw: int = 0) -> list[int]:
    """Return which failures are cut, one of each problem, as the trainer chooses them. `draw` seeds the choice."""
    numbers = {(failure.prompt, failure.candidate): index for index, failure in enumerate(failures)}
    prompts = sorted({failure.prompt for failure in failures})
    failed = [[(prompt, candidate) in numbers for candidate in range(CANDIDATES)] for prompt in prompts]
    if selection == "furthest":
        answers = {(prompts.index(key[0]), key[1]): named[index] for key, index in numbers.items()}
        failed = furthest_failures(failed, answers, 1)
    plan = plan_groups(
        failed, num_generations=2 * CANDIDATES, num_reset_prefixes=1, suffixes_per_prefix=CANDIDATES, seed=draw, step=0
    )
    return [numbers[prompts[seed.prompt], seed.candidate] for seed in plan.seeds]


def reset_steps(failures: Sequence[Failure], named: Sequence[int | None], seed: int = 0) -> np.ndarray:
    """Return the 1-based step that each failure is reset to, a random one where no step is named."""
    uniforms = np.random.default_rng(seed).random(len(failures))
    resets = [
        choose_reset(answer, len(failure.steps), uniform=float(uniform))
        for failure, answer, uniform in zip(failures, named, uniforms, strict=True)
    ]
    return np.array([reset.step for reset in resets])


def noisy_answers(failures: Sequence[Failure], rate: float) -> Answers:
    """Return what the benchmarks' noisy oracle names."""
    return call_localizer(noisy_oracle(rate), [failure.shown for failure in failures])
