"""Draw the curves of a training run and of an evaluation."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from transformers import ProgressCallback

# Okabe and Ito's colors for all common kinds of color blindness, the ones that can be seen on white.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = "osD^vP"  # in the order of the colors
SMOOTHING = 0.7  # share of the running mean that each further point keeps


def learning_curve(log_history: Sequence[dict[str, Any]], path: str | Path) -> Path:
    """Draw the training reward against the optimizer step, as logged and smoothed, and write it to `path`.

    Args:
        log_history: `trainer.state.log_history`; entries without `reward` are skipped.
        path: file to write; its ending names the format (`.png`, `.pdf`, `.svg`). Missing folders are made.

    Raises `ValueError` if no entry has a reward.
    """
    points = [(entry["step"], entry["reward"]) for entry in log_history if entry.get("reward") is not None]
    if not points:
        raise ValueError("the log history has no `reward` yet: train for at least logging_steps steps first")
    steps, rewards = zip(*points, strict=True)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, rewards, color=COLORS[0], alpha=0.35, linewidth=1, marker=".", markersize=4, label="as logged")
    axes.plot(steps, smoothed(rewards), color=COLORS[0], linewidth=2, label="smoothed")
    axes.set(xlabel="optimizer step", ylabel="mean reward of the completions", title="Training reward")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)
    return path


def smoothed(values: Sequence[float], smoothing: float = SMOOTHING) -> list[float]:
    """Return the exponential running mean, without a bias toward the first value: weights are divided by their sum."""
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean = smoothing * mean + (1 - smoothing) * value
        weight = smoothing * weight + (1 - smoothing)
        result.append(mean / weight)
    return result


def pass_at_k_curve(results: Mapping[str, Mapping[str, Any]], path: str | Path) -> Path:
    """Draw pass@k against k for each benchmark of `results`, with its interval, and write it to `path`.

    `results` holds the summaries that `credit_trl.evaluation.summarize` makes of equally many samples, by benchmark.
    """
    path = Path(path)
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (name, result), (color, marker) in zip(
        results.items(), itertools.cycle(zip(COLORS, MARKERS, strict=True)), strict=False
    ):
        points = [
            (int(metric.removeprefix("pass@")), *values)
            for metric, values in result["metrics"].items()
            if metric.startswith("pass@")
        ]
        ks, estimates, low, high = zip(*points, strict=True)
        axes.plot(ks, estimates, color=color, marker=marker, markersize=5, label=name)
        axes.fill_between(ks, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set(xlabel="k", ylabel="pass@k", title="Problems solved by at least one of k completions", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)
    return path


class RewardProgress(ProgressCallback):
    """Show the last logged reward in the progress bar of a training run, instead of printing every log.

    Everything that is logged still reaches `report_to` and `trainer.state.log_history`.
    """

    def on_log(self, args, state, control, logs=None, **kwargs):
        # TRL logs None where no reward function scored a completion of the window.
        if self.training_bar is not None and logs is not None and logs.get("reward") is not None:
            self.training_bar.set_postfix(reward=f"{logs['reward']:.3f}")
