"""Report what the completions of a benchmark say: estimates with intervals, a table, and the files of a run."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from .estimators import bootstrap_interval, maj_at_k, mean_at_k, pass_at_k


def summarize(rows: Sequence[dict[str, Any]], num_samples: int, *, with_votes: bool = True) -> dict[str, Any]:
    """Return the estimates that the completions of a benchmark make.

    The mapping has `metrics`: pass@k for 1, 2, 4, ... and `num_samples`, mean@N, and with votes maj@N, each as
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
    """Return a table of pass@1, mean@N, pass@N and maj@N, of benchmarks with the same number of samples N."""
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
    write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    note = "Means over problems with 95% bootstrap intervals over problems."
    write_text(folder / "results.md", f"{markdown_table(results)}\n{note}\n")


def fingerprint(problems: Dataset) -> str:
    """Return a digest of the problems, which tells whether a run goes on with those that it began with."""
    return hashlib.sha256(json.dumps(problems.to_list(), sort_keys=True).encode()).hexdigest()


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note the settings of a run in `folder`. Raises `ValueError` if what lies there was made with others."""
    path = folder / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in sorted({*before, *settings}) if before.get(name) != settings.get(name)]
        if changed:
            changes = ", ".join(f"{name} (was {before.get(name)!r}, is {settings.get(name)!r})" for name in changed)
            raise ValueError(
                f"{folder} holds completions made with another {changes}. Go on with the settings it began with, or "
                "choose another output folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
