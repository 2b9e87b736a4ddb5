"""One form of mathematical answers: golds and what models answer are brought to it before they are compared."""

import math
import re
from decimal import Decimal

from .latex import math_spans, number_value, unwrap

LONGEST_GOLD = 10_000  # characters of a mathematical gold once it is read

# Words of formulas that are written without LaTeX: a gold that begins with one is no prose.
FUNCTIONS = frozenset(
    re.split(
        r"\W",
        "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt pi inf infinity max min gcd lcm "
        "mod det and or",
    )
)
# "proof" and "notfound" stand in NuminaMath and what was made of it.
_MISSING = frozenset(["", "n/a", "na", "nan", "none", "null", "<na>", "unknown", "tbd", "?", "proof", "notfound"])
_CURRENCY = re.compile(r"\\?[$€£¥₹](?=\s*-?[\d.])|(?<=\d)\s*\\?[$€£¥₹]")
# What ends a sentence, and a backslash that escapes nothing; not the full stop of `\right.`, nor a factorial
_TRAILING = re.compile(r"(?<![\s.,;:\\\u3002])(?<!\\right)(?:[\s.,;:\\\u3002]|\\!|(?<=[^\W\d_]{2})!)+\Z")
_WORDS = r"[^\W\d_](?:[^\W\d_]|['’-])*(?:\s+[^\W\d_](?:[^\W\d_]|['’-])*)*"
_ORDINARY_WORDS = re.compile(_WORDS)
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,?\\[!,]\s?,?|,\s?\\[!,])\s?(?=\d{3}(?!\d))")
_SPACED_THOUSANDS = re.compile(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?")
# Characters of Unicode, and commands that change only how a formula looks
_SYMBOLS = {
    "°": "^\\circ ", "º": "^\\circ ", "π": "\\pi ", "∞": "\\infty ", "×": "\\times ", "·": "\\cdot ", "÷": "\\div ",
    "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "±": "\\pm ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
    "∅": "\\emptyset ", "≈": "\\approx ", "θ": "\\theta ",
    "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}",
}  # fmt: skip
_SYMBOL = re.compile("|".join(_SYMBOLS))
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_POWER = re.compile("⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_ROOT = re.compile(r"√\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+|\w))")
_BIG = re.compile(r"\\[bB]igg?[lrm]?(?=\s*(?:[()\[\]|]|\\[{}|lr]))")
_BRACES = {"lbrace": "\\{", "rbrace": "\\}", "langle": "(", "rangle": ")"}
_BRACE_NAME = re.compile(rf"\\({'|'.join(_BRACES)})(?![a-zA-Z])")
_UPRIGHT = re.compile(r"\\(?:mathrm|text|operatorname)\s*\{([ie])\}")
_ABOUT = re.compile(r"\A(?:\\(?:approx|sim|simeq)(?![a-zA-Z])|(?i:about|approximately)\b)\s*(?=[-\d.\\$])")
_SPACED_BRACE = re.compile(r"(\\(?:text|math)[a-z]*)\s+(?=\{)")  # "20 \text { cm }", as scanned problems have it
_MIXED = re.compile(r"(-?\d+) ([1-9]\d*)/(\d+)")
_SPACED = r"(?:\s|~|\\[ ,;:!])*"
_AMOUNT = r"(-?\d[\d,]{0,30}(?:\.\d{1,30}|/\d{1,30})?)"
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALED = re.compile(
    rf"(?<![/\d])(-?\d[\d,]{{0,30}}(?:\.\d{{1,30}})?){_SPACED}(\\(?:text|mathrm)\s*\{{\s*)?({'|'.join(_SCALES)})s?\b",
    re.IGNORECASE,
)
_CHINESE = "[\u4e00-\u9fff]"
# "7 people", "20 m/s", "12 (twelve)", "5元": a number and its unit in words, not the product 7·p·e·o·p·l·e
_NO_UNIT = (
    "times|plus|minus|over|or|and|to|hundred|dozen|squared|cubed|factorial|half|halves|thirds|quarters|fourths|fifths"
    "|tenths|hundredths|thousandths"
)
_COUNTED = re.compile(
    rf"{_AMOUNT}(?:\s+|(?={_CHINESE}))(?!(?:{_NO_UNIT})\b|[百千万亿])"
    rf"({_WORDS}|\([a-z][a-z ]*\)|(?:[kcm]?m|mi|ft|in|[km]?g|m?[lL]|gal)\s*/\s*"
    r"(?:h|hr|min|s|sec|day|[kc]?m|m?[lL]|kg)(?:\^\{?\d\}?)?)"
)
_NAMED = re.compile(r"[^\W\d_]{3,}(?: [^\W\d_]+)? -?\d+")  # "September 2"
_TEXT = re.compile(r"\\text\{([^{}\\$]*)\}")


def tidy_math(text: str) -> str | None:
    """Return the mathematical answer `text` in the form of `golds.math_gold`, or `None` if nothing is stated.

    Delimiters, currency, `\\text{}` around the whole and looks come off; symbols of Unicode become LaTeX; words, and
    words after a number, go into `\\text{}`; "3 million" is 3000000.
    """
    if len(text) > 2 * LONGEST_GOLD:
        return None
    text = unwrap(text)
    text = "".join(_without_delimiters(text)) if math_spans(text) else text
    text = _THOUSANDS.sub(",", _in_latex(text))
    text = _CURRENCY.sub("", text).replace("\\$", "").replace("$", "")
    text = _ABOUT.sub("", _TRAILING.sub("", unwrap(re.sub(r"\s+", " ", text))))
    text = _SCALED.sub(_scaled, text)
    if text.casefold() in _MISSING or len(text) > LONGEST_GOLD or not re.search(r"[^\W_]", text):
        return None
    text = text.replace(" ", "") if _SPACED_THOUSANDS.fullmatch(text) else text
    value = number_value(text)
    if value is not None:
        return plain_number(Decimal(text)) if re.search("[eE]", text) and "\\" not in text else text
    flat = " ".join(_TEXT.sub(r"\1", text).split())
    if is_named_number(flat) or (_ORDINARY_WORDS.fullmatch(text) and _has_words(text)):
        return f"\\text{{{flat}}}"
    mixed = _MIXED.fullmatch(text)
    if mixed:
        return f"{mixed[1]}\\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    counted = _COUNTED.fullmatch(text)
    if counted and (_has_words(counted[2]) or re.match(_CHINESE, counted[2])):
        return f"{counted[1]}\\text{{ {counted[2]}}}"
    return text


def is_named_number(text: str) -> bool:
    """Return whether `text` is a number with a name before it, such as "September 2", which is another than "May 2"."""
    return _NAMED.fullmatch(text) is not None and text.split()[0].lower() not in FUNCTIONS | {
        "minus",
        "negative",
        "not",
    }


def plain_number(value: int | float | Decimal) -> str | None:
    """Return `value` in digits, as LaTeX: 2e-05 is "0.00002"; nan is `None`."""
    if not math.isfinite(value):
        return None if math.isnan(value) else "\\infty" if value > 0 else "-\\infty"
    if isinstance(value, int):
        return str(value)
    digits = format(Decimal(str(value)), "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _has_words(text: str) -> bool:
    return "/" in text or any(word.lower() not in FUNCTIONS for word in re.findall(r"[^\W\d_]{3,}", text))


def _in_latex(text: str) -> str:
    """Return `text` with LaTeX for symbols of Unicode, and without what changes only how a formula looks."""
    text = _ROOT.sub(lambda match: f"\\sqrt{{{match[1] or match[2] or match[3]}}}", text)
    text = _POWER.sub(lambda match: f"^{{{match[0].translate(_RAISED)}}}", text)
    text = _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text)
    text = _BRACE_NAME.sub(lambda match: _BRACES[match[1]], _BIG.sub("", text))
    text = _SPACED_BRACE.sub(r"\1", text).replace("~", " ")
    return _UPRIGHT.sub(r"\1", text)


def _scaled(match: re.Match[str]) -> str:
    number = Decimal(match[1].replace(",", "")).scaleb(_SCALES[match[3].lower()])
    return f"{plain_number(number)}{match[2] or ''}"


def _without_delimiters(text: str) -> list[str]:
    parts, position = [], 0
    for start, end, content in math_spans(text):
        parts += [text[position:start], content]
        position = end
    return [*parts, text[position:]]
