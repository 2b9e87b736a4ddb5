"""Work out what a localizer is worth: its gain over GRPO by its hit rate, and from which hit rate on resets pay.

Nothing is trained here: the runs are those of the learning curves, and the hit rates those of `hit_rates.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common.methods import METHODS
from benchmarks.learning_curves.report import mean_interval, resamples, sign_flip_p
from benchmarks.learning_curves.suite import SEEDS, SETTINGS, describe, reported_runs, tuned_text
from benchmarks.localizers.trial import of_policy, of_runs

SETTING = "rare"
FRESH_SEEDS = range(10, 30)  # seeds on which what came out ahead ran once more
SELECTIONS = {"random": "", "furthest": " furthest"}  # seed selection -> the end of its methods' names
# Method with the noisy oracle -> how often that names the right step on purpose.
NOISY = {**{f"srpo 1x4 oracle {rate}": f"{rate}" for rate in (0, 0.25, 0.5, 0.75)}, "srpo 1x4 oracle": "1"}
# Method with a localizer that knows no truth -> the localizer's name in `hit_rates.json`.
REAL = {
    "srpo 1x4": "self",
    **{f"srpo 1x4 votes {votes}": f"self, {votes} votes" for votes in (3, 5, 9)},
    **{f"srpo 1x4 prm {solutions}": f"prm {solutions}" for solutions in (100, 500, 2000)},
}
# Settings in which no noisy oracle ran: what their oracle and their own localization are worth.
OTHERS = ("short", "long", "long_reuse")

Finished = dict[str, dict[str, Any]]  # key of a run -> its result, as `RunLog` has them


def results(setting: str, method: str, seeds: Sequence[int], finished: Finished) -> dict[int, dict[str, Any]]:
    """Return a method's finished runs by seed, as tuned; empty before tuning is done."""
    runs = reported_runs((setting, method), seeds, finished)
    return {run.seed: finished[run.key()] for run in runs if run.key() in finished}


def final_pass_rates(setting: str, method: str, seeds: Sequence[int], finished: Finished) -> dict[int, float]:
    return {seed: result["pass_at_1"][-1] for seed, result in results(setting, method, seeds, finished).items()}


def point(setting: str, method: str, grpo: dict[int, float], finished: Finished) -> dict[str, Any] | None:
    """Return what is reported about a method, None without a finished run of it."""
    if method not in METHODS:
        return None
    runs = results(setting, method, SEEDS, finished)
    rates = {seed: run["pass_at_1"][-1] for seed, run in runs.items()}
    seeds = sorted(rates.keys() & grpo.keys())
    if not seeds:
        return None
    gains = [rates[seed] - grpo[seed] for seed in seeds]
    return {
        "method": method,
        "tuned": tuned_text((setting, method), finished),
        "seeds": seeds,
        "pass_at_1": mean_interval([rates[seed] for seed in seeds]),
        "gains": [round(gain, 6) for gain in gains],
        "gain": mean_interval(gains),
        "p": sign_flip_p(gains),
        "logged": logged([runs[seed]["diagnostics"] for seed in seeds]),
        "estimates": {},  # of lines with random failures, see `trial.py`
    }


def logged(runs: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Return what a user sees of the resets without the truth, means over each run, with intervals over runs."""
    base, suffix = ([run[f"reset/{name}_pass_rate"] for run in runs] for name in ("base", "suffix"))
    return {
        "base_pass_rate": mean_interval(base),
        "suffix_pass_rate": mean_interval(suffix),
        "suffix_over_base": mean_interval([after / before for after, before in zip(suffix, base, strict=True)]),
        "corrected_fraction": mean_interval([run["reset/corrected_fraction"] for run in runs]),
    }


def nondecreasing(values: np.ndarray) -> np.ndarray:
    """Return the closest nondecreasing sequence to each row of `values`, in least squares: (..., n) -> (..., n).

    It is max over i <= k of min over j >= k of the mean of values[i .. j].
    """
    n = values.shape[-1]
    sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), values.cumsum(-1)], axis=-1)
    fitted = np.full(values.shape, -np.inf)
    for k in range(n):
        for i in range(k + 1):
            means = [(sums[..., j + 1] - sums[..., i]) / (j + 1 - i) for j in range(k, n)]
            fitted[..., k] = np.maximum(fitted[..., k], np.min(means, axis=0))
    return fitted


def crossing(rates: Sequence[float], gains: Sequence[float]) -> float:
    """Return the hit rate from which on the gains stay above zero, on the line through the points.

    It is minus infinity where they are above it from the lowest rate on, infinity where the last one is not.
    """
    for index in reversed(range(len(gains))):
        if gains[index] <= 0:
            if index == len(gains) - 1:
                return math.inf
            share = -gains[index] / (gains[index + 1] - gains[index])
            return float(rates[index] + share * (rates[index + 1] - rates[index]))
    return -math.inf


def crossing_interval(rates: Sequence[float], gains: np.ndarray, resampled: np.ndarray) -> dict[str, Any]:
    """Return from which hit rate on resets pay, with its 95% percentile bootstrap interval, and resamples without one.

    A better localizer is taken to be worth no less: a nondecreasing curve is laid through the mean gains.

    Args:
        rates: (n,) hit rates, ascending.
        gains: (n,) mean gains over GRPO.
        resampled: (resamples, n) the same of resampled seeds.
    """
    found = np.sort([crossing(rates, row) for row in nondecreasing(resampled)])
    last = len(found) - 1
    # Order statistics, since an end may be infinite.
    numbers = crossing(rates, nondecreasing(gains)), found[math.floor(0.025 * last)], found[math.ceil(0.975 * last)]
    return {
        # JSON has no infinity: it is text there.
        "interval": [float(number) if math.isfinite(number) else str(number) for number in numbers],
        "always": float(np.mean(np.isneginf(found))),
        "never": float(np.mean(np.isposinf(found))),
    }


def crossings(points: Sequence[dict[str, Any]], grpo: dict[int, float], more: dict[int, float]) -> dict[str, Any]:
    """Return the crossings of a line against GRPO's runs of the same seeds, and against those of all seeds.

    Args:
        points: of the line, at least two.
        grpo: GRPO's final pass@1 by seed, of the seeds of `points`.
        more: GRPO's final pass@1 of further seeds.
    """
    seeds = sorted(set.intersection(*(set(found["seeds"]) for found in points)))
    rates = [found["hit_rate"] for found in points]
    gains = np.array([[found["gains"][found["seeds"].index(seed)] for seed in seeds] for found in points])
    drawn = resamples(len(seeds))
    resampled = gains[:, drawn].mean(-1).T  # (resamples, n)
    result = {"seeds": seeds, "paired": crossing_interval(rates, gains.mean(1), resampled)}
    if more:
        own = np.array([grpo[seed] for seed in seeds])
        everyone = np.concatenate([own, np.array(list(more.values()))])
        # Seeds that only GRPO ran on cannot be paired: they are drawn on their own.
        others = np.random.default_rng(1).choice(everyone, (len(drawn), len(everyone))).mean(1)
        shift, shifts = own.mean() - everyone.mean(), own[drawn].mean(-1) - others
        result["all_seeds"] = crossing_interval(rates, gains.mean(1) + shift, resampled + shifts[:, None])
    return result


def line(selection: str, hit_rates: dict[str, Any], finished: Finished) -> dict[str, Any]:
    """Return a seed selection's points by ascending hit rate, those of real localizers apart, and the crossings."""
    policy = hit_rates["policies"][f"{SETTING}, base model"]
    grpo = final_pass_rates(SETTING, "grpo", SEEDS, finished)
    points, real = [], []
    for method, rate in NOISY.items():
        # A random failure that is cut at a random step is what RRPO does.
        name = "rrpo" if rate == "0" and selection == "random" else method + SELECTIONS[selection]
        if found := point(SETTING, name, grpo, finished):
            points.append(
                {"hit_rate": policy["effective_hit_rates"][rate], "localizer": f"noisy oracle {rate}", **found}
            )
    for method, localizer in REAL.items():
        found = point(SETTING, method + SELECTIONS[selection], grpo, finished)
        if found and localizer in policy["localizers"]:
            real.append({"hit_rate": policy["localizers"][localizer]["hit_rate"][0], "localizer": localizer, **found})
    if selection == "random":
        of_runs([*points, *real], policy["effective_hit_rates"]["0"])
    result: dict[str, Any] = {"points": points, "real": real}
    if len(points) > 1:
        result["crossing"] = crossings(points, grpo, final_pass_rates(SETTING, "grpo", FRESH_SEEDS, finished))
    return result


def elsewhere(hit_rates: dict[str, Any], finished: Finished) -> dict[str, Any]:
    """Return what RRPO, the model's own localization and an oracle are worth in the settings without a noisy oracle."""
    result = {}
    for setting in OTHERS:
        grpo = final_pass_rates(setting, "grpo", SEEDS, finished)
        points = [point(setting, method, grpo, finished) for method in ("rrpo", "srpo 1x4", "srpo 1x4 oracle")]
        if not grpo:
            continue
        policy = hit_rates["policies"].get(f"{setting}, base model")
        result[setting] = {
            "description": describe(SETTINGS[setting], results(setting, "grpo", SEEDS, finished)),
            "own_hit_rate": policy and policy["localizers"]["self"]["hit_rate"],
            "points": [found for found in points if found],
        }
    return result


def summarize(hit_rates: dict[str, Any], finished: Finished) -> dict[str, Any]:
    """Return everything that is reported."""
    grpo = final_pass_rates(SETTING, "grpo", SEEDS, finished)
    fresh = final_pass_rates(SETTING, "grpo", FRESH_SEEDS, finished)
    everyone = [*grpo.values(), *fresh.values()]
    return {
        "command": "python -m benchmarks.localizers",
        "note": "Gains are final pass@1 minus GRPO's, paired by seed, with 95% percentile bootstrap intervals over "
        "seeds; p flips the signs of the seeds' differences. Hit rates are those on the base model's failures; a noisy "
        "oracle's count the right steps that it names by chance. A crossing is the hit rate from which on a "
        "nondecreasing curve through the mean gains is above zero.",
        "setting": describe(SETTINGS[SETTING], results(SETTING, "grpo", SEEDS, finished)),
        "grpo": {"seeds": len(grpo), "pass_at_1": mean_interval(list(grpo.values()))},
        "grpo_all_seeds": {"seeds": len(everyone), "pass_at_1": mean_interval(everyone)} if fresh else None,
        "lines": {selection: line(selection, hit_rates, finished) for selection in SELECTIONS},
        "elsewhere": elsewhere(hit_rates, finished),
        "fixed_policies": {name: of_policy(policy) for name, policy in hit_rates["policies"].items()},
    }
