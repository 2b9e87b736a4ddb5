"""Summarize the runs of the learning curves: intervals, crossings, tables. Nothing is trained here."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.learning_curves.figures import AXES
from credit_trl.evaluation.estimators import bootstrap_interval

RESAMPLES = 2000

Interval = tuple[float, float, float]  # the statistic, and the ends of its 95% interval


def tuning_score(result: dict[str, Any]) -> float:
    """Return a run's mean pass@1 over all evaluations but the first: high for runs that learn much and soon."""
    return fmean(result["pass_at_1"][1:])


def resamples(count: int) -> np.ndarray:
    """Return indices of seeds drawn with replacement, (RESAMPLES, count); they are always the same."""
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean with its percentile bootstrap interval over seeds."""
    low, high = bootstrap_interval(values, num_resamples=RESAMPLES)
    return float(np.mean(values)), float(low), float(high)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the p-value of the sign-flip test: how often random signs give a mean as far from 0 as the one observed.

    The test is two-sided. For up to 20 differences it is exact and counts all signs; for more it draws 2^16 of them.
    """
    values, sums = np.asarray(differences), np.zeros(1)
    if len(values) <= 20:
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
    else:
        sums = np.random.default_rng(0).choice((-1, 1), (2**16, len(values))) @ values
    return float(np.mean(np.abs(sums) >= abs(values.sum()) - 1e-12))


def first_crossing(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """Return where the line through the points first reaches `level`; infinity if it never does."""
    for index, value in enumerate(y):
        if value >= level:
            if index == 0:
                return float(x[0])
            share = (level - y[index - 1]) / (value - y[index - 1])
            return float(x[index - 1] + share * (x[index] - x[index - 1]))
    return math.inf


def ratio_interval(crossings: Sequence[float], reference: Sequence[float]) -> Interval:
    """Return the ratio of the median crossings of the same seeds, with its paired percentile bootstrap interval.

    Runs that never cross count as infinitely late, which a median bears. A resample in which neither median is
    finite says nothing about the ratio: it counts as 0 for the lower end and as infinity for the upper one.
    """
    ours, theirs = np.asarray(crossings), np.asarray(reference)
    drawn = resamples(len(ours))
    with np.errstate(invalid="ignore"):
        value = float(_median(ours) / _median(theirs))
        ratios = _median(ours[drawn]) / _median(theirs[drawn])
    unknown = np.isnan(ratios)
    # Order statistics rather than interpolated percentiles: infinity minus infinity is no number.
    low = np.sort(np.where(unknown, 0.0, ratios))[math.floor(0.025 * (RESAMPLES - 1))]
    high = np.sort(np.where(unknown, math.inf, ratios))[math.ceil(0.975 * (RESAMPLES - 1))]
    return value, float(low), float(high)


def catch_up_interval(runs: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]], axis: str) -> Interval:
    """Return what a method needs to reach the final pass@1 of the reference, as a share of what the reference took.

    Both are read off mean curves over seeds; the interval is the percentile bootstrap's over the same seeds for both.
    The share is infinite where the method's mean curve stays below.
    """
    x, y = (np.array([run[name] for run in runs], dtype=float) for name in (axis, "pass_at_1"))
    cost = np.array([run[axis][-1] for run in reference], dtype=float)
    goal = np.array([run["pass_at_1"] for run in reference], dtype=float)

    def needed(seeds: np.ndarray) -> float:
        return first_crossing(x[seeds].mean(0), y[seeds].mean(0), goal[seeds].mean(0)[-1]) / cost[seeds].mean()

    shares = np.sort([needed(seeds) for seeds in resamples(len(x))])
    low, high = shares[math.floor(0.025 * (RESAMPLES - 1))], shares[math.ceil(0.975 * (RESAMPLES - 1))]
    return needed(np.arange(len(x))), float(low), float(high)


def _median(values: np.ndarray) -> np.ndarray:
    """Return the median along the last axis, which is infinite as soon as one of the two middle values is."""
    ordered, middle = np.sort(values, axis=-1), values.shape[-1] // 2
    return (ordered[..., middle] + ordered[..., (values.shape[-1] - 1) // 2]) / 2


def mean_curve(runs: Sequence[dict[str, Any]], axis: str, points: int = 25) -> dict[str, list[float]]:
    """Return the mean pass@1 over seeds with its interval, on a grid that ends where the shortest run ends."""
    grid = np.linspace(0, min(run[axis][-1] for run in runs), points)
    curves = np.stack([np.interp(grid, run[axis], run["pass_at_1"]) for run in runs])
    low, high = bootstrap_interval(curves.T, num_resamples=RESAMPLES)
    return {
        "x": [round(float(value), 2) for value in grid],
        "mean": _rounded(curves.mean(axis=0)),
        "low": _rounded(low),
        "high": _rounded(high),
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in values]


def summarize_method(
    runs: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]], levels: Sequence[float]
) -> dict[str, Any]:
    """Return a method's results in a setting, beside the reference's of the same seeds.

    Args:
        runs: results by seed.
        reference: GRPO's results by seed; may be empty.
        levels: pass rates whose first crossings are compared.
    """
    results = list(runs.values())
    names = {name for result in results for name in result["diagnostics"]}
    summary: dict[str, Any] = {
        "seeds": sorted(runs),
        "diverged": sum(result["diverged"] for result in results),
        "cpu_seconds_per_run": round(fmean(result["cpu_seconds"] for result in results), 2),
        "pass_at_1": mean_interval([result["pass_at_1"][-1] for result in results]),
        "pass_at_16": mean_interval([result["pass_at_16"][-1] for result in results]),
        "curves": {axis: mean_curve(results, axis) for axis in AXES},
        "diagnostics": {
            name: round(fmean(r["diagnostics"][name] for r in results if name in r["diagnostics"]), 5)
            for name in sorted(names)
        },
    }
    common = sorted(runs.keys() & reference.keys())
    if common:
        summary["paired_seeds"] = common
        for name in ("pass_at_1", "pass_at_16"):
            differences = [runs[seed][name][-1] - reference[seed][name][-1] for seed in common]
            summary[f"{name}_minus_grpo"] = mean_interval(differences)
            summary[f"{name}_p"] = sign_flip_p(differences)
        summary["catch_up"] = {
            axis: _finite(catch_up_interval([runs[s] for s in common], [reference[s] for s in common], axis))
            for axis in AXES
        }
        summary["crossings"] = {
            str(level): {
                axis: _crossing([runs[s] for s in common], [reference[s] for s in common], axis, level) for axis in AXES
            }
            for level in levels
        }
    return summary


def _crossing(ours: list[dict], theirs: list[dict], axis: str, level: float) -> dict[str, Any]:
    mine, others = ([first_crossing(run[axis], run["pass_at_1"], level) for run in runs] for runs in (ours, theirs))
    return {"reached": sum(map(math.isfinite, mine)), "ratio_to_grpo": _finite(ratio_interval(mine, others))}


def _finite(interval: Interval) -> list[float | str]:
    """Return an interval as JSON holds it, with text for infinity and NaN, which JSON lacks."""
    return [value if math.isfinite(value) else str(value) for value in interval]


# --- tables ---


def markdown(summary: dict[str, Any]) -> str:
    lines = ["# Learning curves on the testbed", "", summary["note"], ""]
    for name, setting in summary["settings"].items():
        levels = setting["levels"]
        lines += [f"## {name}", "", f"{setting['description']} {setting['core_hours']:.2f} core-hours.", ""]
        header = ["method", "tuned", "final pass@1", "minus GRPO", "p", "final pass@16", "minus GRPO"]
        header += [f"to GRPO's final pass@1: {name}" for name in ("completions", "tokens", "seconds")]
        header += [f"completions to {level:g}, over GRPO's" for level in levels] + ["runs", "s a run"]
        lines += _row(header) + _row(["---"] * len(header))
        for method, outcome in setting["methods"].items():
            compared = method != "grpo" and "catch_up" in outcome
            cells = [method, outcome["tuned"], _interval(outcome["pass_at_1"])]
            cells += [_interval(outcome["pass_at_1_minus_grpo"], "+") if compared else "-"]
            cells += [f"{outcome['pass_at_1_p']:.3f}" if compared else "-", _interval(outcome["pass_at_16"])]
            cells += [_interval(outcome["pass_at_16_minus_grpo"], "+") if compared else "-"]
            cells += [_share(outcome["catch_up"][axis]) if compared else "-" for axis in AXES]
            for level in levels:
                cells.append(
                    _ratio(outcome["crossings"][str(level)]["completions"], len(outcome["paired_seeds"]))
                    if compared
                    else "-"
                )
            runs = f"{len(outcome['seeds'])}" + (f" ({outcome['diverged']} diverged)" if outcome["diverged"] else "")
            lines += _row([*cells, runs, f"{outcome['cpu_seconds_per_run']:.0f}"])
        names = sorted({name for outcome in setting["methods"].values() for name in outcome["diagnostics"]})
        lines += ["", "Means over the runs of what was logged:", ""]
        lines += _row(["method", *names]) + _row(["---"] * (len(names) + 1))
        for method, outcome in setting["methods"].items():
            values = [outcome["diagnostics"].get(name) for name in names]
            lines += _row([method, *("" if value is None else f"{value:.3g}" for value in values)])
        lines.append("")
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


def _interval(interval: Sequence[float], sign: str = "") -> str:
    value, low, high = interval
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _share(interval: Sequence[float | str]) -> str:
    value, low, high = map(float, interval)
    return f"{_number(value) if math.isfinite(value) else 'not reached'} ({_number(low)} to {_number(high)})"


def _ratio(crossing: dict[str, Any], seeds: int) -> str:
    value, low, high = (float(number) for number in crossing["ratio_to_grpo"])
    reached = "" if crossing["reached"] == seeds else f"; {crossing['reached']} of {seeds} reach it"
    if math.isnan(value):
        return f"neither does{reached}"
    ratio = "GRPO does not" if value == 0 else _number(value)
    return f"{ratio} ({_number(low)} to {_number(high)}){reached}"


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "∞"
