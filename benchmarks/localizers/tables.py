"""Write tables of what `worth.py` worked out, as Markdown."""

import math
from collections.abc import Sequence
from typing import Any

NAMES = {
    "rrpo": "RRPO",
    "srpo 1x4": "SRPO, own localization",
    "srpo 1x4 oracle": "SRPO, oracle",
}


def markdown(summary: dict[str, Any]) -> str:
    """Return the report: a table of the lines, the crossings, and what resets are worth in the other settings."""
    grpo = summary["grpo"]
    lines = ["# What a localizer is worth", "", summary["setting"], "", summary["note"], ""]
    lines += _row(["localizer", "failure that is cut", "hit rate", "tuned", "final pass@1", "minus GRPO", "p", "runs"])
    lines += _row(["---"] * 8)
    lines += _row(["GRPO", "", "", "", _interval(grpo["pass_at_1"]), "", "", str(grpo["seeds"])])
    for selection, line in summary["lines"].items():
        for point in [*line["points"], *line["real"]]:
            lines += _row([point["localizer"], selection, f"{point['hit_rate']:.0%}", *_outcome(point)])
    lines += ["", *crossing_lines(summary), "", "## What a run logs", ""]
    lines += _row(["localizer", "failure", "hit rate", "base pass rate", "continuations pass", "over base", "corrected",
                   "hit rate at least", "with RRPO's", "between RRPO's and the oracle's"])  # fmt: skip
    lines += _row(["---"] * 10)
    for selection, line in summary["lines"].items():
        for point in [*line["points"], *line["real"]]:
            seen = point["logged"]
            cells = [f"{seen[name][0]:.3f}" for name in ("base_pass_rate", "suffix_pass_rate")]
            cells += [_interval(seen["suffix_over_base"]), f"{seen['corrected_fraction'][0]:.3f}"]
            estimates = point.get("estimates", {})
            cells += [_share(estimates.get(name)) for name in ("at_least", "at_least_with_rrpo", "between")]
            lines += _row([point["localizer"], selection, f"{point['hit_rate']:.0%}", *cells])
    lines += ["", "## Other settings", ""]
    for setting, outcome in summary["elsewhere"].items():
        lines += [f"**{setting}**: {outcome['description']}"]
        if outcome["own_hit_rate"]:
            lines[-1] += f" The base model's own hit rate: {_percent(outcome['own_hit_rate'])}."
        lines += ["", *_row(["method", "tuned", "final pass@1", "minus GRPO", "p", "runs"]), *_row(["---"] * 6)]
        for point in outcome["points"]:
            lines += _row([NAMES[point["method"]], *_outcome(point)])
        lines += [""]
    return "\n".join(lines)


def crossing_lines(summary: dict[str, Any]) -> list[str]:
    """Return a sentence for each line and each zero line: from which hit rate on its resets pay."""
    zero_lines = {"paired": "GRPO on the same seeds"}
    if summary["grpo_all_seeds"]:
        everyone = summary["grpo_all_seeds"]
        zero_lines["all_seeds"] = f"GRPO on {everyone['seeds']} seeds, {_interval(everyone['pass_at_1'])}"
    sentences = []
    for selection, line in summary["lines"].items():
        for kind, name in zero_lines.items():
            if kind in line.get("crossing", {}):
                found = line["crossing"][kind]
                low, high = found["interval"]
                sentences.append(
                    f"- {selection} failure, against {name}: resets pay from a hit rate of {_rate(found['value'])} on "
                    f"(95%: {_rate(low)} to {_rate(high)}); at any hit rate in {found['always']:.0%} of the resamples, "
                    f"at none in {found['never']:.0%}."
                )
    return sentences


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _rate(rate: float) -> str:
    if math.isinf(rate):
        return "none" if rate > 0 else "chance"
    return f"{rate:.0%}"


def _outcome(point: dict[str, Any]) -> list[str]:
    cells = [point["tuned"], _interval(point["pass_at_1"]), _interval(point["gain"], "+"), f"{point['p']:.3f}"]
    return [*cells, str(len(point["seeds"]))]


def _row(cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


def _interval(interval: Sequence[float], sign: str = "") -> str:
    value, low, high = interval
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _percent(interval: Sequence[float]) -> str:
    value, low, high = interval
    return f"{value:.0%} ({low:.0%} to {high:.0%})"
