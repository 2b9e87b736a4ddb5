"""What golds and answers share when they are read: boxes, math delimiters, wrappers, signs and plain numbers.

Everything here works on text alone and takes time linear in its length, whatever the text.
"""

import re
from decimal import Decimal
from fractions import Fraction

# Characters that stand for a minus sign: minus, small and full-width hyphen-minus, hyphen and non-breaking hyphen.
_MINUS = str.maketrans(dict.fromkeys("\u2212\ufe63\uff0d\u2010\u2011", "-"))
# A dash is a sign only where a number can begin: in "pages 3–5" it is none.
_DASH_SIGN = re.compile(r"(\A|[=(\[{,:<>$]|\bis)(\s*)[\u2012\u2013](?=[\d.\\])")

_BRACES = re.compile(r"\\+(?:boxed|fbox)\s*\{|\\[^a-zA-Z]|[{}]")
# TeX takes what follows for the content of a box without braces; here only a number counts.
_BARE_BOX = re.compile(r"\\boxed[ \t]+(-?(?:\d[\d,]*)?\.?\d+(?:/\d+)?)")
_LANGUAGE = re.compile(r"\A\w*\n")  # of a code block
_TEXT_COMMAND = re.compile(r"\\(?:boxed|fbox|text(?:bf|it|rm|tt|sf|normal)?|math(?:rm|bf|it|tt|sf)|mbox|emph|bm)\s*\{")
_ESCAPED = re.compile(r"\\([_&%#$])")
_POWER = re.compile(r"(?<=[\w)])\*\*(?=[\w(-])")  # Python's, inside of a formula in bold type
_BOLD = re.compile(rf"{_POWER.pattern}|(?P<bold>\*\*)")
_MARKS = ("```", "**", "__", "`")
_DELIMITER = re.compile(r"\$\$|\$|\\.", re.DOTALL)
# A dollar sign before an amount opens no formula, nor does one before a digit close one: "$5 and $10".
_MONEY = re.compile(r"\$\d[\d,.]*\s+(?!mod\b)[a-z]{3,}")
# Between contents that are given together: \boxed{1} and \boxed{2}
TOGETHER = re.compile(r"[\s$*_,;/&|()\[\]\\]*(?:\b(?:and|or)\b[\s$*_,;/&|()\[\]\\]*)?")
_MARKUP_BEFORE = re.compile(r"\A(?:\}|</answer>)", re.IGNORECASE)
_MARKUP_AFTER = re.compile(r"(?:\\+(?:boxed|fbox)\s*\{?|<answer>)\Z", re.IGNORECASE)
_CLOSING = {"$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]"}

_NUMBER = re.compile(r"([+-]?)(\d+|\d{1,3}(?:,\d{3})+)?(\.\d*)?(?:[eE]([+-]?\d{1,3}))?")
_FRACTION = re.compile(r"([+-]?)(?:(\d+)\s*/\s*(\d+)|\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\})")
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*\\(?:times|cdot)\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|(\d))")
LONGEST_NUMBER = 400  # characters; longer numbers are left to the slow comparison, which is bounded in time


def plain_signs(text: str) -> str:
    """Return `text` with every minus sign of Unicode written "-", and a dash only where it is a sign.

    "x = −3" becomes "x = -3"; the range "pages 3–5" stays as it is.
    """
    return _DASH_SIGN.sub(r"\1\2-", text.translate(_MINUS))


def boxed_spans(text: str) -> list[tuple[int, int]]:
    """Return start and end of the content of every complete `\\boxed{...}` of `text`.

    Braces inside may nest. A brace with a backslash (`\\left\\{x, y\\right.`) is a character like others. `\\fbox` is a
    box too, as in MATH, and so is a box with its backslash doubled; a number may stand in a box without braces.
    """
    spans, open_boxes, depth = [], [], 0
    for match in _BRACES.finditer(text):
        token = match[0]
        if len(token) > 2:
            open_boxes.append((match.end(), depth))
            depth += 1
        elif token == "{":
            depth += 1
        elif token == "}" and depth > 0:
            depth -= 1
            if open_boxes and open_boxes[-1][1] == depth:
                spans.append((open_boxes.pop()[0], match.start()))
    return sorted(spans + [match.span(1) for match in _BARE_BOX.finditer(text)])


def last_together(text: str, spans: list[tuple[int, int]]) -> str | None:
    """Return the content of the last of `spans`, joined with those before it that are given together with it.

    `\\boxed{1} and \\boxed{2}` gives "1, 2"; without spans there is `None`.
    """
    if not spans:
        return None
    contents = [text[slice(*spans[-1])].strip()]
    for (_, end), (start, _) in zip(spans[-2::-1], spans[:0:-1], strict=False):
        between = _MARKUP_AFTER.sub("", _MARKUP_BEFORE.sub("", text[end:start]))
        if end > start or start - end > 60 or not TOGETHER.fullmatch(between):
            break
        contents.append(text[slice(*spans[len(spans) - 1 - len(contents)])].strip())
    return ", ".join(dict.fromkeys(reversed(contents)))


def closing_brace(text: str, start: int) -> int | None:
    """Return where the brace closes whose content begins at `start`, or `None` if it does not."""
    depth = 1
    for match in _BRACES.finditer(text, start):
        depth += match[0] != "\\{" and match[0].endswith("{")
        depth -= match[0] == "}"
        if depth == 0:
            return match.start()
    return None


def unwrap(text: str, math: bool = True) -> str:
    """Return `text` without the wrappers around the whole of it, up to 16 of them.

    Wrappers are `\\boxed{}`, `\\text{}` and its like, bold type, code ticks and fences and, where `math` is true, the
    delimiters of formulas: `$...$`, `$$...$$`, `\\(...\\)`, `\\[...\\]`.
    """
    text = text.strip()
    for _ in range(16):
        inner = _inside(text, math)
        if inner is None:
            break
        text = inner.strip()
    return text


def without_open_bold(text: str) -> str:
    """Return `text` without its first mark of bold type if that has no partner, as in "4** because", whose bold type
    began before."""
    marks = [match.start() for match in _BOLD.finditer(text) if match["bold"]]
    return text[: marks[0]] + text[marks[0] + 2 :] if len(marks) % 2 else text


def _inside(text: str, math: bool) -> str | None:
    command = _TEXT_COMMAND.match(text)
    if command and text.endswith("}") and closing_brace(text, command.end()) == len(text) - 1:
        inner = text[command.end() : -1]
        return inner if command[0].startswith(("\\boxed", "\\math", "\\bm")) else _ESCAPED.sub(r"\1", inner)
    for mark in _MARKS:
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            inner = text[len(mark) : -len(mark)]
            if mark not in _POWER.sub("", inner) and inner.strip():
                return _LANGUAGE.sub("", inner) if mark == "```" else inner
    if math and text.startswith(tuple(_CLOSING)):
        spans = math_spans(text)
        if len(spans) == 1 and spans[0][:2] == (0, len(text)):
            return spans[0][2]
    return None


def math_spans(text: str) -> list[tuple[int, int, str]]:
    """Return start, end and content of the formulas of `text`: `$...$`, `$$...$$`, `\\(...\\)`, `\\[...\\]`."""
    spans: list[tuple[int, int, str]] = []
    opening = None
    for match in _DELIMITER.finditer(text):
        before_digit = match[0] == "$" and text[match.end() : match.end() + 1].isdigit()
        if opening is not None and match[0] == _CLOSING[opening[0]] and not before_digit:
            content = text[opening.end() : match.start()]
            if content.strip():
                spans.append((opening.start(), match.end(), content))
            opening = None
        elif match[0] in _CLOSING and (before_digit or opening is None or not opening[0].startswith("$")):
            opening = None if _MONEY.match(text, match.start()) else match
    return spans


def number_value(text: str) -> Fraction | None:
    """Return the exact value of an integer, a decimal, a number with an exponent or a fraction of integers.

    "1,234", "-0.5", "2e-05", "3/4", `\\frac{3}{4}` and `2 \\times 10^{-5}` are such; `None` for everything else.
    """
    if len(text) > LONGEST_NUMBER:
        return None
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        top, bottom = int(fraction[2] or fraction[4]), int(fraction[3] or fraction[5])
        return None if bottom == 0 else Fraction(-top if fraction[1] == "-" else top, bottom)
    scientific = _SCIENTIFIC.fullmatch(text)
    if scientific:
        return Fraction(f"{scientific[1]}e{scientific[2] or scientific[3]}")
    number = _NUMBER.fullmatch(text)
    if number is None or not any(character.isdigit() for character in text):
        return None
    if number[2] is None and number[3] in (None, "."):
        return None
    return Fraction(Decimal(text.replace(",", "")))
