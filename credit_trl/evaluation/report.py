"""What the completions of a benchmark say: estimates with intervals, a table, files."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .estimators import bootstrap_interval, maj_at_k, mean_at_k, pass_at_k


def summarize(rows: Sequence[dict[str, Any]], num_samples: int, *, with_votes: bool = True) -> dict[str, Any]:
    """What the completions of a benchmark say, as plain numbers.

    Returns a mapping with `metrics`: pass@k for 1, 2, 4, ... and `num_samples`, mean@N, and with votes maj@N, each as
    (estimate, lower, upper) with its 95% bootstrap interval over problems; with the number of `problems` and of those
    left out because the reward could not judge them (`unscored`), the mean number of tokens, and the share of
    completions that were cut short (`truncated`). A score of at least 1 is correct.

    Raises `ValueError` if no problem could be judged.
    """
    scores = np.array([row["score"] for row in rows], dtype=float).reshape(-1, num_samples)
    judged = ~np.isnan(scores).any(axis=1)
    if not judged.any():
        raise ValueError("the reward could judge none of the problems: are their answers of the kind it reads?")
    correct = scores[judged] >= 1
    ks = sorted({2**power for power in range(num_samples.bit_length())} | {num_samples})
    estimates = {f"pass@{k}": pass_at_k(num_samples, correct.sum(1), k) for k in ks}
    estimates[f"mean@{num_samples}"] = mean_at_k(scores[judged])
    if with_votes:
        answers = np.array([row["answer"] for row in rows], dtype=object).reshape(-1, num_samples)[judged]
        estimates[f"maj@{num_samples}"] = np.array(
            [maj_at_k(list(votes), list(right), num_samples) for votes, right in zip(answers, correct, strict=True)]
        )
    low, high = bootstrap_interval(list(estimates.values()))
    return {
        "problems": len(correct),
        "unscored": int((~judged).sum()),
        "samples": num_samples,
        "mean_tokens": float(np.mean([row["num_tokens"] for row in rows])),
        "truncated": float(np.mean([row["truncated"] for row in rows])),
        "metrics": {
            metric: (float(values.mean()), float(lower), float(upper))
            for (metric, values), lower, upper in zip(estimates.items(), low, high, strict=True)
        },
    }


def markdown_table(results: dict[str, dict[str, Any]]) -> str:
    """A table of the summaries of benchmarks with the same number of samples: pass@1, mean@N, pass@N and maj@N."""
    (samples,) = {result["samples"] for result in results.values()}
    metrics = list(dict.fromkeys(["pass@1", f"mean@{samples}", f"pass@{samples}", f"maj@{samples}"]))
    lines = [
        f"| benchmark | problems | {' | '.join(metrics)} | tokens | cut short |",
        "|" + "---|" * (len(metrics) + 4),
    ]
    for name, result in results.items():
        cells = [
            "{:.3f} ({:.3f} to {:.3f})".format(*result["metrics"][metric]) if metric in result["metrics"] else ""
            for metric in metrics
        ]
        lines.append(
            f"| {name} | {result['problems']} | {' | '.join(cells)} | {result['mean_tokens']:.0f} "
            f"| {result['truncated']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def write_results(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    """Write `results.json` with everything and `results.md` with the table, each whole or not at all."""
    _write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    note = "Means over problems with 95% bootstrap intervals over problems."
    _write_text(folder / "results.md", f"{markdown_table(results)}\n{note}\n")


def _write_text(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
