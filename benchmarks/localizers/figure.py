"""Draw the gain over GRPO against the hit rate, from what `worth.py` worked out."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

# Colors that color-blind people tell apart (Okabe and Ito), and markers that do without color.
STYLES = {"furthest": ("#D55E00", "o"), "random": ("#0072B2", "s")}
LABELS = {"furthest": "the furthest failure\nis cut", "random": "a random failure\nis cut"}
INK, FAINT = "#333333", "#8a8a8a"
DODGE = 0.006  # the two selections' intervals would lie on each other


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draw the lines of the noisy oracle, a diamond for each real localizer, and GRPO as the zero line."""
    figure = Figure(figsize=(7.2, 5.0), dpi=150, layout="constrained", facecolor="white")
    panel = figure.subplots()
    for selection, (color, marker) in STYLES.items():
        shift = DODGE if selection == "furthest" else -DODGE
        line = summary["lines"][selection]
        _draw_line(panel, line["points"], shift, color, marker, LABELS[selection])
        _draw_real(panel, line["real"], shift, color, above=selection == "furthest")
    _draw_zero(panel, summary)
    low, high = panel.get_ylim()
    panel.set_ylim(low - 0.15 * (high - low), high)  # room for the names below the intervals
    panel.set_xlim(0, 1.3)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1])
    panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.set_xlabel("hit rate: how often the localizer names the first wrong step", fontsize=11)
    panel.set_ylabel("final pass@1, minus GRPO's", fontsize=11)
    panel.set_title("What a localizer is worth where right answers are rare", loc="left", fontsize=12, color=INK)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:+.1f}" if abs(value) > 1e-9 else "0")
    panel.tick_params(labelsize=10)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _draw_line(panel: Axes, points: list[dict[str, Any]], shift: float, color: str, marker: str, label: str) -> None:
    if not points:
        return
    x = [point["hit_rate"] + shift for point in points]
    middle = [point["gain"][0] for point in points]
    error = [[point["gain"][0] - point["gain"][1] for point in points], [p["gain"][2] - p["gain"][0] for p in points]]
    panel.errorbar(
        x, middle, yerr=error, color=color, marker=marker, markersize=6, linewidth=2, capsize=3, elinewidth=1
    )
    panel.annotate(
        label, (x[-1], middle[-1]), xytext=(9, 0), textcoords="offset points", va="center", color=color, fontsize=10
    )
    if points[0]["method"] == "rrpo":
        low = points[0]["gain"][1]
        panel.annotate(
            "RRPO", (x[0], low), xytext=(0, -4), textcoords="offset points", ha="center", va="top", color=color,
            fontsize=9,
        )  # fmt: skip


def _draw_real(panel: Axes, points: list[dict[str, Any]], shift: float, color: str, above: bool) -> None:
    """Draw a diamond for each point, its name at the end of its interval. Those that would overlap stand apart."""
    points = sorted(points, key=lambda point: point["hit_rate"])
    places = spread([point["hit_rate"] + shift for point in points], gap=0.028)
    for x, point in zip(places, points, strict=True):
        value, low, high = point["gain"]
        panel.errorbar(
            x, value, yerr=[[value - low], [high - value]], color=color, marker="D", markersize=7,
            markerfacecolor="white", markeredgewidth=1.8, elinewidth=1, capsize=3, linestyle="none", zorder=4,
        )  # fmt: skip
        panel.annotate(
            _short(point["localizer"]), (x, high if above else low), xytext=(0, 4 if above else -4),
            textcoords="offset points", ha="center", va="bottom" if above else "top", rotation=90, color=color,
            fontsize=9,
        )  # fmt: skip


def spread(places: list[float], gap: float) -> list[float]:
    """Return ascending `places` moved apart to `gap` where they are closer, with the mean of each cluster kept."""
    merged: list[list[float]] = []
    for place in places:
        merged.append([place])
        while len(merged) > 1 and _middle(merged[-1]) - _middle(merged[-2]) < gap * (len(merged[-1] + merged[-2])) / 2:
            last = merged.pop()
            merged[-1] = merged[-1] + last
    return [
        _middle(cluster) + gap * (number - (len(cluster) - 1) / 2)
        for cluster in merged
        for number in range(len(cluster))
    ]


def _middle(cluster: list[float]) -> float:
    return sum(cluster) / len(cluster)


def _short(localizer: str) -> str:
    """Return a localizer's name in the figure."""
    if localizer == "self":
        return "the model"
    return localizer.removeprefix("self, ").replace("prm", "PRM")


def _draw_zero(panel: Axes, summary: dict[str, Any]) -> None:
    panel.axhline(0, color=INK, linewidth=1.5)
    right = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "fontsize": 9}
    panel.annotate("GRPO, the same seeds", (1, 0), xytext=(0, -3), va="top", color=INK, **right)
    everyone = summary["grpo_all_seeds"]
    if everyone:
        shift = everyone["pass_at_1"][0] - summary["grpo"]["pass_at_1"][0]
        panel.axhline(shift, color=FAINT, linewidth=1.2, linestyle=(0, (5, 3)))
        label = f"GRPO, {everyone['seeds']} seeds"
        panel.annotate(label, (1, shift), xytext=(0, 3), va="bottom", color=FAINT, **right)
