"""One rule for golds, the right answers that a data set holds: training and evaluation read them here.

Each kind of reward has a function that turns whatever a data set holds into the one form that its scorer compares, or
into `None` where the value is no gold of that kind. Who calls reports such rows by name (`gold_error`), or skips them.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from string import ascii_uppercase
from typing import Any

from .latex import boxed_spans, math_spans, number_value, plain_signs, unwrap

LONGEST_GOLD = 10_000  # characters of a mathematical gold once it is read

_MISSING = frozenset(["", "n/a", "na", "nan", "none", "null", "<na>", "unknown", "tbd", "?"])
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_STATEMENT = re.compile(r"\banswers?(?:\s+(?:is|are)\b\s*:?|\s*:)[\s*]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|\Z)|\n")
_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mbox|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+|\\.")
_WORD = re.compile(r"[^\W\d_]{2,}")
_NUMBER_IN_PROSE = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
# Words of formulas that are written without LaTeX: a gold that begins with one is no prose.
_FUNCTIONS = frozenset(
    re.split(
        r"\W",
        "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt pi inf infinity max min gcd lcm "
        "mod det and or",
    )
)
_CURRENCY = re.compile(r"\\?[$€£¥₹](?=\s*-?[\d.])|(?<=\d)\s*\\?[$€£¥₹]")
# What ends a sentence, and a backslash that escapes nothing; not the full stop of `\right.`
_TRAILING = re.compile(r"(?<![\s.,;:!\\\u3002])(?<!\\right)[\s.,;:!\\\u3002]+\Z")
_ORDINARY_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|['’-])*(?:\s+[^\W\d_](?:[^\W\d_]|['’-])*)*")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,?\\[!,]\s?,?|,\s?\\[!,])\s?(?=\d{3}(?!\d))")
_LETTER = re.compile(r"[(\[]?\s*([A-Za-z])\s*(?:[)\].:,]+(?:\s.*)?)?", re.DOTALL)
_YES, _NO = frozenset(["yes", "true", "y", "t", "1"]), frozenset(["no", "false", "n", "f", "0"])


def math_gold(value: Any) -> str | None:
    """Return the final answer that `value` holds, as LaTeX without math delimiters, or `None` if it holds none.

    By kind of `value`:

    - a number: in digits, 2e-05 as "0.00002"; nan is `None`. A boolean: `\\text{True}` or `\\text{False}`;
    - a list, also one in JSON such as `["18"]`: its items, joined by ", ";
    - a text: the first of these that it has: what follows its last `####`; its last `\\boxed{}`; in prose, what follows
      the last "answer is" or "answer:", or else its last formula or number; otherwise all of it.

    Delimiters of formulas, currency signs and `\\text{}` around the whole come off, minus signs are plain, the commas
    of `1,234` stay; words become `\\text{words}`, since letters in LaTeX are a product of variables. Units, percent
    signs, sets, intervals and matrices stay as they are: the comparison reads them.

    `None` are: a missing value, "", "N/A", "nan", "None"; text without a letter, digit or command; prose without an
    answer; an answer of more than 10,000 characters.
    """
    if isinstance(value, bool):
        return f"\\text{{{value}}}"
    if isinstance(value, int | float | Decimal):
        return _number(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        golds = [math_gold(item) for item in value]
        read = [gold for gold in golds if gold is not None]
        return ", ".join(read) if read and len(read) == len(golds) else None
    if not isinstance(value, str):
        return None
    items = _json_list(value)
    return math_gold(items) if items is not None else _math_text(value)


def choice_gold(value: Any, choices: Sequence[str] | Mapping[str, Sequence[str]] | None = None) -> str | None:
    """Return the capital letter of the right choice, or `None` if `value` does not name one.

    `value` may be a letter ("B", "b", "(B)", "B.", `\\boxed{B}`, "B) Paris"), the index of the choice as an integer,
    counted from 0, or, where `choices` are given, the label or the text of a choice. A number as text ("1") is a label
    or a text and never an index, since data sets differ in where they begin to count.

    `choices` are the texts in order, or a mapping with the lists "text" and "label", as ARC and CommonsenseQA have it.
    """
    labels: list[str] = []
    texts: list[str] | None = None
    if isinstance(choices, Mapping):
        texts, labels = list(choices["text"]), [str(label) for label in choices.get("label", ())]
    elif choices is not None:
        texts = list(choices)
    count = len(ascii_uppercase) if texts is None else min(len(texts), len(ascii_uppercase))
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return ascii_uppercase[value] if 0 <= value < count else None
    if not isinstance(value, str):
        return None
    text = unwrap(_last_box(value))
    if text in labels:
        return ascii_uppercase[labels.index(text)]
    plain = [" ".join(str(choice).split()).casefold() for choice in texts or ()]
    wanted = " ".join(text.split()).casefold()
    if plain.count(wanted) == 1:
        return ascii_uppercase[plain.index(wanted)]
    match = _LETTER.fullmatch(text)
    letter = match[1].upper() if match else ""
    return letter if letter and ascii_uppercase.index(letter) < count else None


def yes_no_gold(value: Any) -> str | None:
    """Return "yes" or "no", or `None` if `value` is neither.

    True, 1, "yes", "true", "y", "t" and "1" are yes; False, 0 and their opposites no; case, a final full stop and
    wrappers do not count.
    """
    if isinstance(value, bool | int):
        return {0: "no", 1: "yes"}.get(int(value))
    if not isinstance(value, str):
        return None
    word = unwrap(_last_box(value)).rstrip(".! ").casefold()
    return "yes" if word in _YES else "no" if word in _NO else None


def gold_error(reward: str, column: str, row: int, value: Any, wanted: str) -> ValueError:
    """Return the error for a gold that `reward` cannot read; it names the reward, the column and the row."""
    return ValueError(f"{reward}: row {row} of column `{column}` holds {shown(value)}, which is no {wanted}")


def shown(value: Any, width: int = 60) -> str:
    """Return `value` as an error or a table shows it: its representation, cut in the middle at `width` characters."""
    text = repr(value)
    half = (width - 5) // 2
    return text if len(text) <= width else f"{text[:half]} ... {text[-half:]}"


def _number(value: int | float | Decimal) -> str | None:
    if not math.isfinite(value):
        return None if math.isnan(value) else "\\infty" if value > 0 else "-\\infty"
    if isinstance(value, int):
        return str(value)
    digits = format(Decimal(str(value)), "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _json_list(text: str) -> list | None:
    """Return the list of texts that `text` is in JSON. Intervals such as [0, 1] and [0] are no such list."""
    if not (text.lstrip().startswith('["') and text.rstrip().endswith('"]')):
        return None
    try:
        items = json.loads(text)
    except ValueError:
        return None
    return items if all(isinstance(item, str) for item in items) else None


def _last_box(text: str) -> str:
    spans = boxed_spans(text)
    return text[slice(*spans[-1])] if spans else text


@lru_cache(maxsize=4096)  # every completion of a group has the same gold
def _math_text(text: str) -> str | None:
    text = plain_signs(text).strip()
    hashes = _HASHES.findall(text)
    if hashes:
        text = hashes[-1]
    elif boxed_spans(text):
        text = _last_box(text)
    elif _is_prose(text):
        text = _end_of_prose(text)
    return tidy_math(text)


def _is_prose(text: str) -> bool:
    outside = text
    for start, end, _ in reversed(math_spans(text)):
        outside = outside[:start] + " " + outside[end:]
    words = _WORD.findall(_COMMAND.sub(" ", outside))
    if len(words) >= 4 or _STATEMENT.search(text):
        return True
    first = _WORD.match(text)
    return bool(first and first[0].lower() not in _FUNCTIONS and re.search(r"[\d$]|\\\(|\\\[", text))


def _end_of_prose(text: str) -> str:
    statements = list(_STATEMENT.finditer(text))
    if statements:
        text = text[statements[-1].end() :]
        end = _SENTENCE_END.search(text)
        stated = text[: end.start()] if end else text
        if not _is_prose(stated):
            return stated
    # A formula goes before a number inside of it, and what comes later before what comes earlier.
    found = [(end, -start, content) for start, end, content in math_spans(text)]
    found += [(match.end(), -match.start(), match[0]) for match in _NUMBER_IN_PROSE.finditer(text)]
    return max(found)[2] if found else ""


def tidy_math(text: str) -> str | None:
    """Return the mathematical answer `text` in the form of `math_gold`, or `None` if nothing is stated.

    Answers of models are brought to the form of golds by this function too.
    """
    if len(text) > 2 * LONGEST_GOLD:
        return None
    text = unwrap(text)
    text = "".join(_without_delimiters(text)) if math_spans(text) else text
    text = _THOUSANDS.sub(",", text)
    text = _CURRENCY.sub("", text).replace("\\$", "").replace("$", "")
    text = _TRAILING.sub("", unwrap(re.sub(r"\s+", " ", text)))
    if text.casefold() in _MISSING or len(text) > LONGEST_GOLD or not re.search(r"[^\W_]", text):
        return None
    value = number_value(text)
    if value is not None:
        return _number(Decimal(text)) if re.search("[eE]", text) and "frac" not in text else text
    if _ORDINARY_WORDS.fullmatch(text) and any(
        word.lower() not in _FUNCTIONS for word in re.findall(r"[^\W\d_]{3,}", text)
    ):
        return f"\\text{{{text}}}"
    return text


def _without_delimiters(text: str) -> list[str]:
    parts, position = [], 0
    for start, end, content in math_spans(text):
        parts += [text[position:start], content]
        position = end
    return [*parts, text[position:]]
