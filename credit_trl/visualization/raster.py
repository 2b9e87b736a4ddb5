"""Draw the heatmap of a few completions as an image, for what cannot show HTML: light theme, no exact values."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from .completion_credit import CompletionCredit
from .page import glyph, level, palette

COLUMNS = 120  # characters in a line
MAX_LINES = 60  # lines shown of a completion

_FONT = "DejaVu Sans Mono"  # comes with Matplotlib
_DPI = 100
_WIDTH, _HEIGHT, _MARGIN = 7, 18, 15  # pixels of a character, of a line, and around all
_SIZE = _WIDTH / 0.602 * 72 / _DPI  # points at which the font's characters are that wide
_COLORS = palette("light") | {"not-finite": palette("light")["line"]}


class _Cell(NamedTuple):
    """Hold a piece of text on one background; `color` is the background's name."""

    line: int
    column: int
    text: str
    color: str

    @property
    def text_color(self) -> str:
        return _COLORS["note" if self.color == "masked" else "text"]


def heatmap_image(completions: Sequence[CompletionCredit], limit: float) -> np.ndarray:
    """Draw completions one below the other.

    Args:
        limit: size of a credit that gets the full color.

    Returns:
        (height, width, 3) of bytes, RGB.
    """
    cells: list[_Cell] = []
    top = 0
    for completion in completions:
        head = f"advantage {completion.advantage:+.3g}, full color at credit {limit:.3g}"
        cells.append(_Cell(top, 0, head, "page"))
        drawn, lines = _lay_out(completion, limit)
        cells += [cell._replace(line=top + 1 + cell.line) for cell in drawn if cell.line < MAX_LINES]
        if lines > MAX_LINES:
            more = f"({lines - MAX_LINES} more lines are in the HTML file)"
            cells.append(_Cell(top + 1 + MAX_LINES, 0, more, "page"))
        top += min(lines, MAX_LINES + 1) + 2
    width, height = COLUMNS * _WIDTH + 2 * _MARGIN, top * _HEIGHT + 2 * _MARGIN
    figure = Figure((width / _DPI, height / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    background = np.full((height, width, 3), to_rgb(_COLORS["page"]))
    for cell in cells:
        y, x = _MARGIN + cell.line * _HEIGHT, _MARGIN + cell.column * _WIDTH
        background[y : y + _HEIGHT - 2, x : x + len(cell.text) * _WIDTH] = to_rgb(_COLORS[cell.color])
    figure.figimage(background)
    for (line, color), run in groupby(cells, key=lambda cell: (cell.line, cell.text_color)):
        pieces = list(run)
        figure.text(
            (_MARGIN + pieces[0].column * _WIDTH) / width,
            1 - (_MARGIN + line * _HEIGHT + (_HEIGHT - 2) / 2) / height,
            "".join(piece.text for piece in pieces),
            **dict(family=_FONT, size=_SIZE, va="center_baseline", parse_math=False, color=color),
        )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _lay_out(completion: CompletionCredit, limit: float) -> tuple[list[_Cell], int]:
    """Return the pieces of a completion's tokens on lines of `COLUMNS` characters, and the number of lines."""
    font = get_font(findfont(_FONT))
    cells, line, column = [], 0, 0
    for text, value, counted in zip(completion.tokens, completion.credit, completion.mask, strict=True):
        color = level(value, limit, signed=True) if counted else "masked"
        for piece in text.splitlines(keepends=True):
            shown = "".join(sign if font.get_char_index(ord(sign)) else "□" for sign in "".join(map(glyph, piece)))
            while shown:
                if column == COLUMNS:
                    line, column = line + 1, 0
                cells.append(_Cell(line, column, shown[: COLUMNS - column], color))
                shown, column = shown[COLUMNS - column :], min(column + len(shown), COLUMNS)
            if piece.endswith("\n"):
                line, column = line + 1, 0
    return cells, line + 1
