"""Draw the tokens of a completion, colored by the credit that each receives."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..resets.steps import Decode
from .page import LEVELS, Picture, level, mark, section, visible

Values = Sequence[float]  # or a tensor or array of one dimension
Labels = Mapping[int, str]  # label by the index of its token

_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 4  # tokens, one for each byte
_NARROW = 20  # characters; completions without a longer line stand side by side on a phone


def credit_heatmap(
    tokens: Sequence[str] | Mapping[str, Sequence[str]],
    credit: Values | Mapping[str, Values],
    *,
    mask: Values | Mapping[str, Values] | None = None,
    marks: Labels | Mapping[str, Labels] | None = None,
    outlined: Labels | Mapping[str, Labels] | None = None,
    details: Mapping[str, Values] | None = None,
    title: str = "",
    note: str = "",
    unit: str = "credit",
    signed: bool = True,
    limit: float | None = None,
    numbers: bool = False,
) -> Picture:
    """Draw a completion with every token on the color of its credit; exact values show while the pointer is on it.

    Args:
        tokens: texts of the T tokens, as `token_texts` returns them; by method name where methods are drawn on
            different completions.
        credit: T values, or T values for each of several methods by name, drawn side by side.
        mask: T values, zero for tokens that are not trained, such as a kept prefix; by method name where methods
            differ. All tokens are trained by default. The credit of a token that is not trained is not drawn.
        marks: labels by the index of the token that they stand before, such as `{12: "reset"}`; by method name where
            methods differ.
        outlined: labels by the index of the token that they stand after and that gets an outline, such as
            `{14: "wrong"}` for the token that decided; by method name where methods differ.
        details: T further values by name, which show next to the credit, such as entropies.
        title, note: plain text above the picture.
        unit: name of the values.
        signed: color by sign and size, zero in the middle. False: weights, which are at least 0.
        limit: size that gets the full color, for all methods; give one to compare pictures. By default the largest
            finite size of each method.
        numbers: write the values that have a color below their tokens, with two digits. For short completions, and
            where there is no pointer.

    Raises:
        ValueError: values that are not one for each token, a label of a token or of a method that does not exist, a
            method without `tokens` or a `mask` where these are by name, a `limit` that is not positive, or negative
            values with `signed=False`.
    """
    methods = credit if isinstance(credit, Mapping) else {"": credit}
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be above 0, got {limit}")
    for kind, labels in (("marks", marks), ("outlined", outlined)):
        if unknown := [
            repr(key) for key, value in (labels or {}).items() if not (isinstance(value, str) or key in methods)
        ]:
            names = ", ".join(methods) if methods is credit else "no methods"
            raise ValueError(f"{kind} has labels for {', '.join(unknown)}, and credit has {names}")
    rows = []
    for name, values in methods.items():
        texts, own_mask = _of_method("tokens", tokens, name), _of_method("mask", mask, name)
        row = _Row(
            name=name,
            texts=texts,
            values=_floats(name or unit, values, texts),
            trained=[True] * len(texts) if own_mask is None else list(map(bool, _floats("mask", own_mask, texts))),
            marks=_labels("marks", marks, name, texts),
            outlined=_labels("outlined", outlined, name, texts),
            details={detail: _floats(detail, further, texts) for detail, further in (details or {}).items()},
        )
        if not signed and min(row.drawn, default=0.0) < 0:
            raise ValueError(f"{name or unit} has negative values: draw them with signed=True")
        rows.append(row)
    figures = [
        _figure(
            row,
            "" if limit is not None else _legend(unit, row.largest, [row], signed=signed),
            _tokens(row, unit, row.largest if limit is None else limit, signed=signed, numbers=numbers),
            numbers=numbers,
        )
        for row in rows
    ]
    shared = "" if limit is None else _legend(unit, limit, rows, signed=signed)
    narrow = " narrow" * all(len(line) <= _NARROW for row in rows for line in "".join(row.texts).split("\n"))
    return Picture(
        section(title, note, f'{shared}<div class="methods{narrow}">{"".join(figures)}</div>'), title or unit
    )


def token_texts(token_ids: Sequence[int], decode: Decode) -> list[str]:
    """Return the text that each token adds. The texts join to the whole text, unlike tokens decoded one by one.

    A character whose bytes are spread over several tokens is the text of the last of them; the others have none.

    Args:
        token_ids: ids of one completion, without padding.
        decode: function from a list of ids to its text, such as `tokenizer.decode`, with nothing skipped or cleaned
            up.
    """
    texts: list[str] = []
    context = shown = 0  # tokens before `shown` have their text; those from `context` on are decoded before the next
    for end in range(1, len(token_ids) + 1):
        before, now = decode(token_ids[context:shown]) if shown else "", decode(token_ids[context:end])
        if now.endswith(_REPLACEMENT) and end < len(token_ids) and end - shown < _LONGEST_CHARACTER:
            texts.append("")
            continue
        texts.append(now[len(before) :])
        context, shown = shown, end
    return texts


def _floats(name: str, values: Values, tokens: Sequence[str]) -> list[float]:
    """Return the values as floats. Raises `ValueError` if they are not one for each token."""
    numbers = [float(value) for value in values]
    if len(numbers) != len(tokens):
        raise ValueError(f"{name} has {len(numbers)} values for {len(tokens)} tokens: give one for each")
    return numbers


def _of_method(kind: str, values: Any, method: str) -> Any:
    """Return a method's own of `values`, where these are by name. Raises `ValueError` where it has none."""
    if not isinstance(values, Mapping):
        return values
    if method not in values:
        raise ValueError(f"{kind} has no {method!r}, only {', '.join(values)}")
    return values[method]


def _labels(kind: str, labels: Labels | Mapping[str, Labels] | None, method: str, tokens: Sequence[str]) -> Labels:
    """Return a method's own labels. Raises `ValueError` for a label of a token that does not exist."""
    own: dict[int, str] = {}
    for key, value in (labels or {}).items():
        if isinstance(value, str):
            own[int(key)] = value
        elif key == method:
            own |= value
    for index in own:
        if not 0 <= index < len(tokens):
            raise ValueError(f"{kind} has token {index}, but there are {len(tokens)} tokens, counted from 0")
    return own


@dataclass(frozen=True)
class _Row:
    """Hold what is drawn of a method: a completion of T tokens and what each of them received."""

    name: str
    texts: Sequence[str]
    values: list[float]
    trained: list[bool]  # False for tokens whose value is not drawn
    marks: Labels
    outlined: Labels
    details: dict[str, list[float]]

    @property
    def drawn(self) -> list[float]:
        return [value for value, trained in zip(self.values, self.trained, strict=True) if trained]

    @property
    def largest(self) -> float:
        return max((abs(value) for value in self.drawn if math.isfinite(value)), default=0.0)


def _figure(row: _Row, legend: str, text: str, *, numbers: bool) -> str:
    caption = f"<figcaption>{visible(row.name, spaces=False)}</figcaption>" if row.name else ""
    return f'<figure>{caption}{legend}<div class="text{" numbered" * numbers}">{text}</div></figure>'


def _tokens(row: _Row, unit: str, limit: float, *, signed: bool, numbers: bool) -> str:
    """Return the tokens as HTML. Lines break after the last of several `\\n` in a row."""
    parts = []
    for index, (text, value, trained) in enumerate(zip(row.texts, row.values, row.trained, strict=True)):
        facts = [f"token {index}: {text!r}", f"{unit} {value:.6g}" if trained else "not trained"]
        facts += [f"{detail} {further[index]:.6g}" for detail, further in row.details.items()]
        kind = level(value, limit, signed=signed) if trained else "masked"
        tooltip = html.escape("\n".join(facts)).replace("\n", "&#10;")
        shown = visible(text) or "◌"
        if numbers:
            number = f"{value:{'+' if signed else ''}.2g}".replace("-", "−")
            shown += f'<i class="number">{"" if kind in ("page", "masked") else number}</i>'
        before = mark(row.marks[index]) if index in row.marks else ""
        after, outline = (mark(row.outlined[index]), "outlined ") if index in row.outlined else ("", "")
        parts.append(f'{before}<wbr><span class="token {outline}{kind}" title="{tooltip}">{shown}</span>{after}')
        if text.endswith("\n") and index + 1 < len(row.texts) and not row.texts[index + 1].startswith("\n"):
            parts.append("<br>")
    return "".join(parts)


def _legend(unit: str, limit: float, rows: Sequence[_Row], *, signed: bool) -> str:
    """Return the scale of the colors, and of the patterns that occur in `rows`."""
    masked = not all(trained for row in rows for trained in row.trained)
    finite = all(math.isfinite(value) for row in rows for value in row.drawn)
    ends = (f"−{limit:.3g}", f"+{limit:.3g}") if signed else ("0", f"{limit:.3g}")
    names = [f"n{i}" for i in range(LEVELS, 0, -1)] * signed + ["page"]
    names += [f"{'p' if signed else 'w'}{i}" for i in range(1, LEVELS + 1)]
    ramp = "".join(f'<i class="{name}"></i>' for name in names)
    parts = [f'{visible(unit, spaces=False)} {ends[0]}<span class="ramp">{ramp}</span>{ends[1]}']
    parts += ['<i class="swatch masked"></i>not trained'] * masked
    parts += ['<i class="swatch not-finite"></i>not finite'] * (not finite)
    return f'<div class="legend">{"".join(f"""<span class="scale">{part}</span>""" for part in parts)}</div>'
