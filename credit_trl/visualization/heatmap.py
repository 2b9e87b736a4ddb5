"""Draw the tokens of a completion, colored by the credit that each receives."""

import html
import math
from collections.abc import Mapping, Sequence

from ..resets.steps import Decode
from .page import LEVELS, Picture, level, mark, section, visible

Values = Sequence[float]  # or a tensor or array of one dimension

_REPLACEMENT = "�"
_LONGEST_CHARACTER = 4  # tokens, one for each byte


def credit_heatmap(
    tokens: Sequence[str],
    credit: Values | Mapping[str, Values],
    *,
    mask: Values | Mapping[str, Values] | None = None,
    marks: Mapping[int, str] | None = None,
    details: Mapping[str, Values] | None = None,
    title: str = "",
    note: str = "",
    unit: str = "credit",
    signed: bool = True,
    limit: float | None = None,
) -> Picture:
    """Draw a completion with every token on the color of its credit; exact values show while the pointer is on it.

    Args:
        tokens: texts of the T tokens, as `token_texts` returns them.
        credit: T values, or T values for each of several methods by name, drawn side by side.
        mask: T values, zero for tokens outside the loss, such as a kept prefix; by method name where methods differ.
            All tokens are in the loss by default. The credit of a token outside is not drawn.
        marks: labels by the index of the token that they stand before, such as `{12: "reset"}`.
        details: T further values by name, which show next to the credit, such as entropies.
        title, note: plain text above the picture.
        unit: name of the values.
        signed: color by sign and size, zero in the middle. False: weights, which are at least 0.
        limit: size that gets the full color; give one to compare pictures. By default the largest finite size of
            each method.

    Raises:
        ValueError: values that are not one for each token, a mark of a token that does not exist, a `limit` that is
            not positive, or negative values with `signed=False`.
    """
    methods = credit if isinstance(credit, Mapping) else {"": credit}
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be above 0, got {limit}")
    for index in marks or {}:
        if not 0 <= index < len(tokens):
            raise ValueError(f"marks has token {index}, but there are {len(tokens)} tokens, counted from 0")
    further = {name: _floats(name, values, tokens) for name, values in (details or {}).items()}
    figures = []
    for name, values in methods.items():
        one_mask = mask[name] if isinstance(mask, Mapping) else mask
        in_loss = [True] * len(tokens) if one_mask is None else [bool(v) for v in _floats("mask", one_mask, tokens)]
        figures.append(
            _figure(
                name, tokens, _floats(name or unit, values, tokens), in_loss, marks or {}, further, unit, signed, limit
            )
        )
    return Picture(section(title, note, f'<div class="methods">{"".join(figures)}</div>'), title or unit)


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
    numbers = [float(value) for value in values]
    if len(numbers) != len(tokens):
        raise ValueError(f"{name} has {len(numbers)} values for {len(tokens)} tokens: give one for each")
    return numbers


def _figure(name, tokens, values, in_loss, marks, details, unit, signed, limit) -> str:
    drawn = [value for value, counted in zip(values, in_loss, strict=True) if counted]
    if not signed and min(drawn, default=0.0) < 0:
        raise ValueError(f"{name or unit} has negative values: draw them with signed=True")
    if limit is None:
        limit = max((abs(value) for value in drawn if math.isfinite(value)), default=0.0)
    spans = []
    for index, (text, value, counted) in enumerate(zip(tokens, values, in_loss, strict=True)):
        facts = [f"token {index}: {text!r}", f"{unit} {value:.6g}" if counted else "not in the loss"]
        facts += [f"{detail} {numbers[index]:.6g}" for detail, numbers in details.items()]
        kind = level(value, limit, signed=signed) if counted else "masked"
        label = mark(marks[index]) if index in marks else ""
        tooltip = html.escape("\n".join(facts)).replace("\n", "&#10;")
        spans.append(f'{label}<wbr><span class="token {kind}" title="{tooltip}">{visible(text) or "◌"}</span>')
    caption = f"<figcaption>{visible(name, spaces=False)}</figcaption>" if name else ""
    finite = all(map(math.isfinite, drawn))
    legend = _legend(unit, limit, signed=signed, masked=not all(in_loss), finite=finite)
    return f'<figure>{caption}{legend}<div class="text">{"".join(spans)}</div></figure>'


def _legend(unit: str, limit: float, *, signed: bool, masked: bool, finite: bool) -> str:
    ends = (f"−{limit:.3g}", f"+{limit:.3g}") if signed else ("0", f"{limit:.3g}")
    names = [f"n{i}" for i in range(LEVELS, 0, -1)] * signed + ["page"]
    names += [f"{'p' if signed else 'w'}{i}" for i in range(1, LEVELS + 1)]
    ramp = "".join(f'<i class="{name}"></i>' for name in names)
    parts = [f'{visible(unit, spaces=False)} {ends[0]}<span class="ramp">{ramp}</span>{ends[1]}']
    parts += ['<i class="swatch masked"></i>not in the loss'] * masked
    parts += ['<i class="swatch not-finite"></i>not finite'] * (not finite)
    return f'<div class="legend">{"".join(f"""<span class="scale">{part}</span>""" for part in parts)}</div>'
