"""Provide what the figures of all benchmarks share: size of the text, colors, names of methods.

A figure is 5.6 inches wide, two panels in a row, on a white ground: its text can be read on a phone (360 pixels wide)
and on a dark page.
"""

import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from credit_trl.cli.methods import METHODS as TABLE

WIDTH = 5.6  # inches
GRAY = "#4d4d4d"
TEXT = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 9,
    "figure.titlesize": 10,
    "figure.labelsize": 9.5,
}  # options of Matplotlib, sizes in points


def method_title(method: str) -> str:
    """Return a method's name in prose: `GRPO-lambda, both` for `grpo_lambda both`."""
    name, _, variant = method.partition(" ")
    title = TABLE[name].title if name in TABLE else name.upper()
    return f"{title}, {variant.replace('s_trace', 'with S-trace')}" if variant else title


def new_figure(height: float) -> Figure:
    """Return an empty figure of `height` inches that places its panels by itself."""
    return Figure(figsize=(WIDTH, height), dpi=200, layout="constrained", facecolor="white")


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG of 256 colors, which is a third of its size. Missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
