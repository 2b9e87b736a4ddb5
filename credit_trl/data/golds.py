"""One rule for golds, the right answers that a data set holds: training and evaluation read them here.

Each kind of reward has a function that turns whatever a data set holds into the one form that its scorer compares, or
into `None` where the value is no gold of that kind. Who calls reports such rows by name (`gold_error`), or skips them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from string import ascii_uppercase
from typing import Any

from .latex import boxed_spans, last_together, math_spans, plain_signs, unwrap
from .notation import FUNCTIONS, is_named_number, plain_number, tidy_math

_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_STATEMENT = re.compile(r"\banswers?(?:\s+(?:is|are)\b\s*:?|\s*:)[\s*]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|\Z)|\n")
_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mbox|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+|\\.")
_WORD = re.compile(r"[^\W\d_]{2,}")
_NUMBER_IN_PROSE = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
# Golds of several words that are answers: "None of the above", "cannot be determined from this".
_ANSWER_IN_WORDS = re.compile(
    r"(?:none|all|both|neither|no|not|cannot|can not|can't|does not|impossible|infinitely|insufficient)"
    r"(?: [a-z]+){1,7}\.?",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:####|(?:the\s+)?(?:(?:final|correct|right)\s+)?(?:answer|option|choice)(?:\s+is\b|\s*:)?)\s*", re.IGNORECASE
)
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

    `None` are: a missing value, "", "N/A", "nan", "None", "proof"; text without a letter, digit or command; prose
    without an answer; an answer of more than 10,000 characters.
    """
    if isinstance(value, bool):
        return f"\\text{{{value}}}"
    if isinstance(value, int | float | Decimal):
        return plain_number(value)
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
    text = _stated(value)
    if text is None:
        return None
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
    word = (_stated(value) or "").rstrip(".,! ").casefold()
    return "yes" if word in _YES else "no" if word in _NO else None


def gold_error(reward: str, column: str, row: int, value: Any, wanted: str) -> ValueError:
    """Return the error for a gold that `reward` cannot read; it names the reward, the column and the row."""
    return ValueError(f"{reward}: row {row} of column `{column}` holds {shown(value)}, which is no {wanted}")


def shown(value: Any, width: int = 60) -> str:
    """Return `value` as an error or a table shows it: its representation, cut in the middle at `width` characters."""
    text = repr(value)
    half = (width - 5) // 2
    return text if len(text) <= width else f"{text[:half]} ... {text[-half:]}"


def _json_list(text: str) -> list | None:
    """Return the list of texts that `text` is in JSON. Intervals such as [0, 1] and [0] are no such list."""
    if not (text.lstrip().startswith('["') and text.rstrip().endswith('"]')):
        return None
    try:
        items = json.loads(text)
    except ValueError:
        return None
    return items if all(isinstance(item, str) for item in items) else None


def _stated(value: Any) -> str | None:
    """Return the text of a gold that is a letter or a word, without a box, quotes or "Answer:" around it."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        return None
    spans = boxed_spans(value)
    text = unwrap(value[slice(*spans[-1])] if spans else value.rpartition("####")[2])
    return unwrap(_LEAD.sub("", text, count=1)).strip("'\"")


@lru_cache(maxsize=4096)  # every completion of a group has the same gold
def _math_text(text: str) -> str | None:
    text = plain_signs(text).strip()
    hashes = _HASHES.findall(text)
    if hashes:
        text = hashes[-1]
    elif boxed_spans(text):
        text = last_together(text, boxed_spans(text)) or ""
    elif _is_prose(text):
        text = _end_of_prose(text)
    return tidy_math(text)


def _is_prose(text: str) -> bool:
    if _ANSWER_IN_WORDS.fullmatch(text) or is_named_number(text):
        return False
    outside = text
    for start, end, _ in reversed(math_spans(text)):
        outside = outside[:start] + " " + outside[end:]
    words = _WORD.findall(_COMMAND.sub(" ", outside))
    if len(words) >= 4 or _STATEMENT.search(text):
        return True
    first = _WORD.match(text)
    return bool(first and first[0].lower() not in FUNCTIONS and re.search(r"[\d$]|\\\(|\\\[", text))


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
