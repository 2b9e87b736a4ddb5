"""Write tables of what `worth.py` worked out, as Markdown."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

NAMES = {"rrpo": "RRPO", "srpo 1x4": "SRPO, own localization", "srpo 1x4 oracle": "SRPO, oracle"}
ESTIMATES = {
    "at_least": "at least",
    "at_least_with_random": "at least, given random resets",
    "between": "between random and an oracle's resets",
}


def markdown(summary: dict[str, Any]) -> str:
    """Return the report: the lines and their crossings, what estimates say, what resets are worth in other settings."""
    lines = ["# What a localizer is worth", "", summary["setting"], "", summary["note"], ""]
    lines += [*_gains(summary), "", *crossing_lines(summary)]
    lines += ["", "## What a run's own metrics say about the hit rate", "", *_logged(summary)]
    lines += ["", "## What continuations from fixed policies say about it", "", *_fixed(summary)]
    return "\n".join([*lines, "", "## Other settings", "", *_elsewhere(summary)])


def _points(summary: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for selection, line in summary["lines"].items():
        for point in [*line["points"], *line["real"]]:
            yield selection, point


def _gains(summary: dict[str, Any]) -> list[str]:
    grpo = summary["grpo"]
    lines = _head("localizer", "failure that is cut", "hit rate", "tuned", "final pass@1", "minus GRPO", "p", "runs")
    lines += _row("GRPO", "", "", "", _interval(grpo["pass_at_1"]), "", "", str(grpo["seeds"]))
    for selection, point in _points(summary):
        lines += _row(point["localizer"], selection, f"{point['hit_rate']:.0%}", *_outcome(point))
    return lines


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
                lowest = line["points"][0]["hit_rate"]
                value, low, high = (_rate(float(rate), lowest) for rate in found["interval"])
                sentences.append(
                    f"- {selection} failure, against {name}: resets pay from a hit rate of {value} on (95%: {low} to "
                    f"{high}); at all that were tried in {found['always']:.0%} of the resamples, at none in "
                    f"{found['never']:.0%}."
                )
    return sentences


def _logged(summary: dict[str, Any]) -> list[str]:
    head = ["localizer", "failure that is cut", "hit rate", "base pass rate", "continuations pass", "over base"]
    lines = _head(*head, "corrected", *ESTIMATES.values())
    for selection, point in _points(summary):
        seen = point["logged"]
        cells = [f"{seen[name][0]:.3f}" for name in ("base_pass_rate", "suffix_pass_rate")]
        cells += [_interval(seen["suffix_over_base"]), f"{seen['corrected_fraction'][0]:.3f}"]
        lines += _row(
            point["localizer"], selection, f"{point['hit_rate']:.0%}", *cells, *_estimates(point["estimates"])
        )
    return lines


def _fixed(summary: dict[str, Any]) -> list[str]:
    head = ["policy", "localizer", "hit rate", "clean prefix", "what passes", "base pass rate", "continuations pass"]
    lines = _head(*head, *ESTIMATES.values())
    for policy, localizers in summary["fixed_policies"].items():
        for localizer, figures in localizers.items():
            for kind, name in (("pass", "as rewarded"), ("exact", "word for word")):
                found = figures[kind]
                cells = [f"{figures['hit_rate']:.0%}", f"{figures['clean_rate']:.0%}", name]
                cells += [f"{found[rate]:.3f}" for rate in ("base", "suffix")]
                lines += _row(policy, localizer, *cells, *_estimates(found))
    return lines


def _elsewhere(summary: dict[str, Any]) -> list[str]:
    lines = []
    for setting, outcome in summary["elsewhere"].items():
        own = outcome["own_hit_rate"]
        lines += [f"**{setting}**: {outcome['description']}"]
        if own:
            lines[-1] += f" The base model's own hit rate: {own[0]:.0%} ({own[1]:.0%} to {own[2]:.0%})."
        lines += ["", *_head("method", "tuned", "final pass@1", "minus GRPO", "p", "runs")]
        for point in outcome["points"]:
            lines += _row(NAMES[point["method"]], *_outcome(point))
        lines += [""]
    return lines


def _rate(rate: float, lowest: float) -> str:
    if math.isinf(rate):
        return "no rate" if rate > 0 else f"{lowest:.0%} or less"
    return f"{rate:.0%}"


def _estimates(found: dict[str, float]) -> list[str]:
    return [f"{found[name]:.0%}" if name in found else "" for name in ESTIMATES]


def _outcome(point: dict[str, Any]) -> list[str]:
    cells = [point["tuned"], _interval(point["pass_at_1"]), _interval(point["gain"], "+"), f"{point['p']:.3f}"]
    return [*cells, str(len(point["seeds"]))]


def _head(*cells: str) -> list[str]:
    return [*_row(*cells), *_row(*["---"] * len(cells))]


def _row(*cells: str) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


def _interval(interval: Sequence[float], sign: str = "") -> str:
    value, low, high = interval
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
