"""Put values into Markdown: tables, intervals, names of methods."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from credit_trl.cli.methods import METHODS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Names that the benchmarks give to variants, where the words of the name do not say it.
TITLES = {
    "gmpo": "GMPO",
    "grpo in fours": "GRPO, groups of 4, loss `grpo`",
    "grpo in two fours": "GRPO, two groups of 4 for each problem, loss `grpo`",
    "grpo top entropy": "GRPO, top 20% by entropy",
    "grpo unclipped": "GRPO without clipping",
    "grpo epsilon 0.1": "GRPO, `epsilon=0.1`",
    "grpo two-sided": "GRPO, `delta=1.5`",
    "grpo floored": "GRPO with GRPO-lambda's floor",
    "grpo_lambda recent": "GRPO-lambda, `recent`",
    "grpo_lambda recent unfloored": "GRPO-lambda, `recent`, no floor",
    "grpo_lambda both": "GRPO-lambda, `both`",
    "grpo_lambda advantage": "GRPO-lambda, `recent`, on the advantage",
    "grpo_lambda both advantage": "GRPO-lambda, `both`, on the advantage",
    "srpo 1x4 s_trace": "SRPO with S-trace",
    "srpo 1x4 first step": "SRPO, always to the first step",
    "srpo 1x4 votes 3": "SRPO, 3 votes",
    "srpo 1x4 prm 500": "SRPO, a PRM of 500 solutions",
    "cumulative": "cumulative ratio (CTPO's, one bound for all tokens)",
    **{
        f"{name} {variant}": f"{name[0].upper()}-trace, {text}"
        for name in ("p_trace", "s_trace")
        for variant, text in (
            ("own gradient", '`trace_gradient="own"`'),
            ("equal credit", "equal credit"),
            ("unnormalized", "not normalized"),
            ("0.5", "lambda 0.5"),
            ("0.9", "lambda 0.9"),
            ("0.99", "lambda 0.99"),
        )
    },
}


def stored(path: str) -> Any:
    """Return the content of a JSON file below `benchmarks/`."""
    return json.loads((BENCHMARKS / path).read_text(encoding="utf-8"))


def title(method: str) -> str:
    """Return what a method of the benchmarks is called in the pages."""
    if method in TITLES:
        return TITLES[method]
    name, *variants = method.replace(",", "").split()
    return ", ".join([METHODS[name].title, *(variant for variant in variants if variant != "1x4")])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table.

    Raises:
        ValueError: a row with an empty cell, or with more or fewer cells than the header.
    """
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        if len(row) != len(header) or not all(row):
            raise ValueError(f"a row needs {len(header)} cells with something in each, got {row}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def interval(values: Sequence[float], sign: str = "", digits: int = 3) -> str:
    """Return a value with its interval: "0.715 (0.691 to 0.737)". `sign` "+" shows the sign of each."""
    value, low, high = (f"{number:{sign}.{digits}f}" for number in values)
    return f"{value} ({low} to {high})"


def percents(values: Sequence[float]) -> str:
    """Return a share with its interval, in percent."""
    value, low, high = (f"{100 * number:.1f}" for number in values)
    return f"{value}% ({low} to {high})"


def share(values: Sequence[float | str]) -> str:
    """Return a share of GRPO's completions with its interval, of which any may be infinite: never reached."""
    value, low, high = (f"{float(number):.2f}" if math.isfinite(float(number)) else "∞" for number in values)
    return "not reached" if low == "∞" else f"{value.replace('∞', 'not reached')} ({low} to {high})"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
