"""Draw the learning curves of a setting as small multiples: one method against GRPO in each panel."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from benchmarks.common.drawing import GRAY, TEXT, method_title, new_figure, save
from credit_trl.visualization.curves import COLORS

AXES = {
    "completions": "trained completions",
    "generated_tokens": "tokens, localization included",
    "seconds": "CPU seconds, one thread",
}
SETTING_TITLES = {
    "short": "Short chains of steps",
    "long": "Long chains of steps",
    "long_reuse": "Long chains, four optimizer steps on a batch",
    "rare": "Rare right solutions",
    "wide": "100 generation batches, many facts",
    "wide_reuse": "100 generation batches, four optimizer steps on each",
}
RESETS = ("grpo in fours", "rrpo", "srpo")  # how the names of methods with reset groups begin, and of their control
KINDS = {"ratios and traces": COLORS[0], "resets": COLORS[1]}
COLUMNS = 2


def figure_path(folder: Path, name: str, axis: str) -> Path:
    """Return the file of a setting's figure; only figures over another axis than completions name it."""
    return folder / (f"learning_curves_{name}.png" if axis == "completions" else f"learning_curves_{name}_{axis}.png")


def kind_of(method: str) -> str:
    """Return the family of a method, a key of `KINDS`."""
    return "resets" if method.startswith(RESETS) else "ratios and traces"


@rc_context(TEXT)
def draw_setting(name: str, setting: dict[str, Any], path: Path, axis: str = "completions") -> Figure:
    """Draw pass@1 of each method beside GRPO's in a panel of its own. Return the figure, which is written to `path`.

    All panels share their axes. A panel's title has the method's final pass@1 less GRPO's, with its interval.

    Args:
        name: of the setting.
        setting: its part of the summary, with a curve and an interval for each method.
        path: PNG file to write.
        axis: what the curves run over, one of `AXES`.
    """
    methods = setting["methods"]
    compared = sorted(
        (method for method in methods if method != "grpo"), key=lambda method: kind_of(method) == "resets"
    )
    reference = methods["grpo"]["curves"][axis] if "grpo" in methods else None
    compared = compared or ["grpo"]
    rows = -(-len(compared) // COLUMNS)
    figure = new_figure(1.2 + 1.75 * rows)
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for panel, method in zip(grid.flat, compared, strict=False):
        if reference is not None:
            _draw_curve(panel, reference, GRAY, dashed=True)
        if method != "grpo":
            _draw_curve(panel, methods[method]["curves"][axis], KINDS[kind_of(method)])
        panel.set_title(_panel_title(method, methods[method]), linespacing=1.3)
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    for panel in grid.flat[len(compared) :]:
        panel.set_visible(False)
    for panel in grid.flat[max(0, len(compared) - COLUMNS) : len(compared)]:  # the lowest panel of each column
        panel.tick_params(labelbottom=True)
        panel.set_xlabel(AXES[axis])
    if axis == "generated_tokens":
        grid[0, 0].xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.suptitle(
        f"{SETTING_TITLES.get(name, name)}\nBelow a name: final pass@1 minus GRPO's (95% interval over seeds)"
    )
    figure.supylabel("pass@1 on held-out problems")
    figure.legend(handles=_legend_handles(compared), loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)
    return figure


def _panel_title(method: str, outcome: dict[str, Any]) -> str:
    if method == "grpo" or "pass_at_1_minus_grpo" not in outcome:
        return method_title(method)
    value, low, high = outcome["pass_at_1_minus_grpo"]
    return f"{method_title(method)}\n{value:+.3f} ({low:+.3f} to {high:+.3f})".replace("-0.", "−0.")


def _draw_curve(panel: Axes, curve: dict[str, list[float]], color: str, *, dashed: bool = False) -> None:
    panel.plot(curve["x"], curve["mean"], color=color, linewidth=1.6, linestyle="--" if dashed else "-")
    panel.fill_between(curve["x"], curve["low"], curve["high"], color=color, alpha=0.18, linewidth=0)


def _legend_handles(compared: Sequence[str]) -> list[Line2D]:
    kinds = [kind for kind in KINDS if any(method != "grpo" and kind_of(method) == kind for method in compared)]
    return [
        Line2D([], [], color=GRAY, linestyle="--", label="GRPO"),
        *(Line2D([], [], color=KINDS[kind], label=kind) for kind in kinds),
    ]
