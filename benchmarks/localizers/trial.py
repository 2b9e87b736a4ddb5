"""Try the estimate of a hit rate on the testbed, where the truth is known: on logged runs and on fixed policies."""

from collections.abc import Sequence
from typing import Any

from benchmarks.localizers.estimate import hit_rate_at_least, hit_rate_between

RANDOM, ORACLE = "noisy oracle 0", "noisy oracle 1"


def estimates(
    base: float, suffix: float, random: float | None, oracle: float | None, chance: float
) -> dict[str, float]:
    """Return what pass rates say about a hit rate: bounds from below, and a value where both ends are given.

    Args:
        base, suffix: pass rates of completions from the prompt, and after the localizer's resets.
        random, oracle: pass rates after random resets and an oracle's; None leaves out what needs them.
        chance: how often a random step is the first wrong one, which counts as a hit in the value.
    """
    found = {"at_least": hit_rate_at_least(base, suffix)}
    if random is not None:
        found["at_least_with_random"] = hit_rate_at_least(base, suffix, random)
        if oracle is not None:
            found["between"] = chance + (1 - chance) * hit_rate_between(suffix, random, oracle)
    return {name: round(value, 4) for name, value in found.items()}


def of_runs(points: Sequence[dict[str, Any]], chance: float) -> None:
    """Add to the points of finished runs what their logged pass rates say, given those of RRPO's and the oracle's runs.

    Policies differ in how far they got: pass rates after resets are compared as shares of the same runs' base rates.
    """
    shares = {found["method"]: found["logged"]["suffix_over_base"][0] for found in points}
    for found in points:
        base, suffix = (found["logged"][f"{name}_pass_rate"][0] for name in ("base", "suffix"))
        ends = [shares[name] * base if name in shares else None for name in ("rrpo", "srpo 1x4 oracle")]
        found["estimates"] = estimates(base, suffix, *ends, chance)


def of_policy(policy: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return for each localizer of a fixed policy its hit rate, and what pass rates say about it.

    Once with the reward, for which errors may cancel, and once for solutions that are right word for word.
    """
    localizers, result = policy["localizers"], {}
    for name, figures in localizers.items():
        if "suffix_pass_rate" not in figures:
            continue
        result[name] = {"hit_rate": figures["hit_rate"][0], "clean_rate": figures["clean_rate"][0]}
        for kind in ("pass", "exact"):
            base, suffix = policy[f"base_{kind}_rate"], figures[f"suffix_{kind}_rate"][0]
            ends = [localizers[end][f"suffix_{kind}_rate"][0] for end in (RANDOM, ORACLE)]
            found = estimates(base, suffix, *ends, policy["effective_hit_rates"]["0"])
            result[name][kind] = {"base": base, "suffix": suffix, **found}
    return result
