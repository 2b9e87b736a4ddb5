"""The reward `accuracy`: whether a completion's answer is mathematically equal to the gold."""

import re
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any

from ..data.golds import math_gold
from ..data.latex import math_spans, number_value, plain_signs
from ..data.notation import is_named_number, tidy_math
from .answers import Completion, completion_text
from .equality import compact, decimals
from .pool import Comparison, compare
from .statements import clause, final_part, first_formulas, statement

_ANSWER = re.compile(r"\banswer\b", re.IGNORECASE)
_NEAR = 50  # characters between the word "answer" and a formula that is taken for it, as math-verify has it
_WORDS = re.compile(r"\\text\{([^{}\\$]*[^\W\d_]{2}[^{}\\$]*)\}")
# A choice by its letter, with or without its text: "B", "(B) 42", "B. 42", `\textbf{(B)}\ 42`
_CHOICE = re.compile(
    r"(?:\\(?:text|math)\w{0,6}\s*\{\s*)?\(([A-J])\)(?!\()\s*\}?(?:\\[ ,;:!]|\\q?quad(?![a-z])|~|\s)*"
    r"(?!\s*(?:[-+*/=^_<>]|\\(?:cdot|times|cup|cap|in|to)\b))(.*)|([A-J])(?:[.):]\s+(.+))?",
    re.DOTALL,
)
_OTHER_CHOICE = re.compile(r"\([A-J]\)|[,;]\s*[A-J][.):]")
# The subject of a sentence: "The answer: the sum is 34"
_SUBJECT = re.compile(r"(?:the|a|our|its|their)\s(?:[^\W\d_]+\s){1,5}?(?:is|are|equals)\s+(?=[-\d$\\])", re.IGNORECASE)
UNREAD, SKIPPED = "[unparseable]", "[skipped]"  # what TRL logs for them


def math_answer(text: str) -> str | None:
    """Return the mathematical answer that `text` states, as LaTeX without delimiters like `golds.math_gold`, or `None`.

    It is the last statement (`statements.statement`); of a sentence, its first formula, or else its words up to the end
    or a reason. Where nothing else is stated, a formula close behind the last word "answer" counts.
    """
    stated = statement(text)
    if stated is not None:
        content = stated.text
        if stated.kind == "sentence":
            content = first_formulas(content) or _SUBJECT.sub("", clause(content), count=1)
        return tidy_math(plain_signs(content))
    text = final_part(text)
    words = list(_ANSWER.finditer(text))
    if words:
        rest = text[words[-1].end() :][:1000]
        spans = math_spans(rest)
        if spans and spans[0][0] <= _NEAR:
            return tidy_math(plain_signs(first_formulas(rest) or ""))
    return None


def accuracy_reward(
    completions: Sequence[Completion],
    solution: Sequence[Any] | None = None,
    answer: Sequence[Any] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Return 1.0 where the completion's answer is equal to `solution` (or `answer`), 0.0 where not.

    The gold is read by `golds.math_gold`, the answer by `math_answer`; a completion that states none has 0.0, and so
    has one that states several where the gold is one. math-verify compares them, in processes of their own (`pool`): an
    expression that cannot be evaluated costs seconds and has 0.0. The reward is `None`, as in
    `trl.rewards.accuracy_reward`, where the gold cannot be read.

    Logs the columns that TRL's reward logs: `solution`, `gold_parsed`, `answer_parsed`. Raises `ValueError` when the
    data set has neither column.
    """
    expected = answer if solution is None else solution
    if expected is None:
        raise ValueError("accuracy_reward needs a column `solution` or `answer`; name yours with answer_column")
    golds = [math_gold(value) for value in expected]
    answers = [math_answer(completion_text(completion)) for completion in completions]
    pairs = [
        None if gold is None or given is None else (gold, given) for gold, given in zip(golds, answers, strict=True)
    ]
    told = compare_answers({pair for pair in pairs if pair is not None})
    if log_extra := kwargs.get("log_extra"):
        log_extra("solution", list(expected))
        log_extra("gold_parsed", [told[pair][1] if pair else UNREAD if gold is None else f"['{gold}']"
                                  for gold, pair in zip(golds, pairs, strict=True)])  # fmt: skip
        log_extra("answer_parsed", [told[pair][2] if pair else SKIPPED if gold is None else UNREAD
                                    for gold, pair in zip(golds, pairs, strict=True)])  # fmt: skip
    return [
        None if gold is None else float(pair is not None and told[pair][0])
        for gold, pair in zip(golds, pairs, strict=True)
    ]


def compare_answers(pairs: Collection[tuple[str, str]]) -> dict[tuple[str, str], Comparison]:
    """Return for each (gold, answer) of `pairs` whether they are equal, and how both were read.

    Numbers and words are compared here, everything else in the processes of `pool`. An answer that is much longer than
    its gold (20 times, and over 1,000 characters), and one that cannot be evaluated in time, is equal only if it is the
    same text.
    """
    aligned = {pair: _align(*pair) for pair in pairs}
    told = {pair: _compare_plain(*pair) for pair in aligned.values()}
    rest = sorted(pair for pair, comparison in told.items() if comparison is None)
    compared = dict(zip(rest, compare(rest), strict=True))

    def comparison(gold: str, given: str) -> Comparison:
        return (
            told[gold, given]
            or compared[gold, given]
            or (compact(gold) == compact(given), f"['{gold}']", f"['{given}']")
        )

    return {pair: comparison(*sides) for pair, sides in aligned.items()}


def _align(gold: str, given: str) -> tuple[str, str]:
    """Return of a choice with its letter and its text, such as "(B) 42", the part that the other side has."""
    letter, text = _choice(gold)
    given_letter, given_text = _choice(given)
    if letter and given_letter:
        return letter, given_letter
    return (text or gold) if letter else gold, (given_text or given) if given_letter else given


def _choice(text: str) -> tuple[str | None, str | None]:
    """Return the letter of a choice and its text, each `None` where there is none."""
    match = _CHOICE.fullmatch(text.removeprefix("\\text{").removesuffix("}") if "{" not in text[6:] else text)
    if match is None or _OTHER_CHOICE.search(match[2] or match[4] or ""):
        return None, None
    return match[1] or match[3], tidy_math(match[2] or match[4] or "")


def _compare_plain(gold: str, given: str) -> Comparison | None:
    """Compare two numbers or words, or return `None` if they are something else."""
    if len(given) > max(1000, 20 * len(gold)):
        return False, f"['{gold}']", UNREAD
    value, given_value = number_value(gold), number_value(given)
    if value is not None and given_value is not None:
        same = value == given_value
        # As math-verify has it, integers are exact, and so are two fractions: 2022/2023 is no 2023/2024.
        if not same and "." in gold + given and _is_inexact(gold, value) and _is_inexact(given, given_value):
            digits = decimals(float(value))
            same = round(value, digits) == round(given_value, digits)
        return same, f"[{value}, '{gold}']", f"[{given_value}, '{given}']"
    words = _WORDS.fullmatch(gold)
    if words is None:
        return None
    given_words = _WORDS.fullmatch(given)
    texts = [" ".join(text.split()).casefold() for text in (words[1], given_words[1] if given_words else given)]
    same = texts[0] == texts[1] or (
        given_value is not None and is_named_number(texts[0]) and number_value(texts[0].split()[-1]) == given_value
    )
    return same, f"[{texts[0]}, '{gold}']", f"[{texts[1]}, '{given}']"


def _is_inexact(text: str, value: Fraction) -> bool:
    return "." in text or value.denominator > 1
