"""Verifiable rewards in TRL's reward-function signature, for conversational and for plain-string completions.

A final answer is written as `\\boxed{...}`, which is what the prompts of `credit_trl.data` ask for. `statements` says
what else counts as one.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from ..data.golds import choice_gold, gold_error, yes_no_gold
from ..data.latex import boxed_spans, plain_signs
from ..data.reasoning_gym import score_task
from .statements import clause, final_part, statement

Completion = str | list[dict[str, Any]]
RewardFunction = Callable[..., Sequence[float | None]]

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
# A clause that is a number, perhaps after "x =" or a currency sign, and before a unit of some words.
_NUMBER_ALONE = re.compile(
    r"(?:[^\W\d]\w{0,2}\s*=\s*)?[\s$€£*(]*(-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?)[$*)]*(?:\s*[^\W\d_]+){0,4}\W*"
)

# What may stand before a letter or a word, what may close it, and what joins it to a second one.
_OPENING = r"""[\s$*({\["'`“‘]*(?:\\[(\[])?(?:\\(?:text|textbf|textit|mathrm|mathbf|boxed)\s*\{[\s(]*)*"""
_CLOSING = r"""[\s$*)}\]"'`”’\\]*"""
_HEDGES = (
    r"(?:(?:\\text\{\s*)?\b(?i:or|and|but|maybe|perhaps|possibly|probably|also|it|could|might|may|be|even|no|wait"
    r"|actually|rather)\b[\s,}]*)"
)
_JOINT = rf"(?:(?:[,;/&|+]|\s-|\\(?:q?quad|lor|vee|\\))\s*{_HEDGES}*|[.?!(]?\s*{_HEDGES}+"
_END = r"""\s*(?:[).:,;}\]*$!?`\\/&|+]|["'”’](?!\w)|\Z)"""
# "B", "(B) 42", "\text{B}.", "B because ...", "B - Paris", not "B is wrong", "B?", "I'm" or "P(A)"
_LETTER = re.compile(
    rf"(?:\\text\{{\s*)?(?:(?i:option|choice|letter)\s+)?{_OPENING}([A-Z])"
    r"""(?=\s*(?:[).:,;}\]*$!`\\/&|+]|["'”’](?!\w)|\Z)|\s+(?:[(\u2014\u2013-]|(?:because|since|as|due|given|which)\b))"""
)
_SMALL_LETTER = re.compile(r"[\s$*({\[`]*([a-z])[\s)}\].$*`]*")
# A second letter, as in "B, C", "(A) (B)" and "B, or maybe C", and not the text of the choice, as in "(B) I and II".
_OTHER_LETTER = re.compile(
    rf"{_CLOSING}{_JOINT}|(?=[(\[]\s*[A-Z]\s*[)\]])){_OPENING}(?!I\s+(?:and|or)\s+[IVX]{{2}})([A-Z])"
    rf"(?={_END}|\s+(?:or|and)\b)"
)
_YES_NO = re.compile(rf"{_OPENING}(yes|no|true|false)\b", re.IGNORECASE)
_OTHER_WORD = re.compile(rf"{_CLOSING}{_JOINT}|[.?!(]\s*|){_OPENING}(yes|no|true|false)\b(?={_END})", re.IGNORECASE)
_AFTER_ANSWER = re.compile(r"[\s.$*\])]*")  # closes a sentence, a formula or bold type


def completion_text(completion: Completion) -> str:
    """Return the text of a completion: the string itself, or the content of its last message.

    Content in parts, as vision-language models have it, gives the text of its parts; a message without content, such as
    a tool call, gives "".
    """
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def extract_answer(text: str) -> str:
    """Return the final answer that `text` states, by the first of these rules that applies:

    1. what it says to be its answer (`statements.statement`): tags, a box, or a sentence such as "The answer is ...". A
       sentence gives its number, or else its words up to its end;
    2. the last number: "12 + 7 - 4 = 21 - 4 = 17." gives "17";
    3. the last line that is not empty.

    Minus signs of Unicode become "-". Dollar signs inside of tags and boxes stay.
    """
    stated = statement(text)
    if stated is not None:
        content = plain_signs(stated.text)
        if stated.kind != "sentence":
            return content
        content = clause(content)
        number = _NUMBER_ALONE.fullmatch(content)
        if content:
            return number[1] if number else content
    text = plain_signs(final_part(text))
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else text.strip().rpartition("\n")[2].strip()


def stated_answer(text: str) -> str | None:
    """Return what `text` says in so many words to be its answer (`statements.statement`), or `None`."""
    stated = statement(text)
    return None if stated is None else stated.text


def extract_choice(text: str) -> str | None:
    """Return the capital letter that the stated answer of `text` begins with, as in "(B) because ...", or `None`.

    A second letter beside it ("A, B", "(A) or (B)", "B, or maybe C") makes it no choice.
    """
    stated = stated_answer(text) or ""
    small = _SMALL_LETTER.fullmatch(stated)
    if small:
        return small[1].upper()
    match = _LETTER.match(stated)
    if match is None:
        return None
    other = _OTHER_LETTER.match(stated, match.end())
    return match[1] if other is None or other[1] == match[1] else None


def extract_yes_no(text: str) -> str | None:
    """Return "yes" or "no", as the stated answer of `text` begins with it or with "true" or "false", or `None`.

    The opposite beside it ("yes or no", "Yes. No.") makes it no answer.
    """
    stated = stated_answer(text) or ""
    match = _YES_NO.match(stated)
    if match is None:
        return None
    word = yes_no_gold(match[1])
    other = _OTHER_WORD.match(stated, match.end())
    return word if other is None or yes_no_gold(other[1]) == word else None


def choice_reward(completions: Sequence[Completion], solution: Sequence[Any], **kwargs: Any) -> list[float]:
    """Return 1.0 where the letter that the completion chooses (`extract_choice`) is `solution`, else 0.0.

    `solution` names a choice by its letter ("B", "(B)", "b") or as an integer index from 0 (`golds.choice_gold`).
    Raises `ValueError` that names the row for any other gold.
    """
    golds = _read_golds(solution, choice_gold, "choice_reward", "letter and no index of a choice")
    answers = [extract_choice(completion_text(completion)) for completion in completions]
    return [float(answer == gold) for answer, gold in zip(answers, golds, strict=True)]


def yes_no_reward(completions: Sequence[Completion], solution: Sequence[Any], **kwargs: Any) -> list[float]:
    """Return 1.0 where the completion answers (`extract_yes_no`) as `solution`, else 0.0.

    `solution` is "yes" or "no" in any case, or true or false (`golds.yes_no_gold`). Raises `ValueError` that names the
    row for any other gold.
    """
    golds = _read_golds(solution, yes_no_gold, "yes_no_reward", "yes and no no")
    answers = [extract_yes_no(completion_text(completion)) for completion in completions]
    return [float(answer == gold) for answer, gold in zip(answers, golds, strict=True)]


def _read_golds(solution: Sequence[Any], read: Callable[[Any], str | None], reward: str, wanted: str) -> list[str]:
    """Return the golds as `read` reads them. Raises `ValueError` that names the first row where it cannot."""
    golds = []
    for row, value in enumerate(solution):
        gold = read(value)
        if gold is None:
            raise gold_error(reward, "solution", row, value, wanted)
        golds.append(gold)
    return golds


def format_reward(completions: Sequence[Completion], **kwargs: Any) -> list[float]:
    """Return 1.0 where the completion has exactly one `\\boxed{...}`, not empty, and ends with it; else 0.0.

    Only what closes a sentence, a formula or bold type may follow the box.
    """
    rewards = []
    for text in map(completion_text, completions):
        spans = boxed_spans(text)
        good = (
            len(spans) == text.count("\\boxed") == 1
            and text.startswith("}", spans[0][1])
            and text[slice(*spans[0])].strip() != ""
            and _AFTER_ANSWER.fullmatch(text, spans[0][1] + 1) is not None
        )
        rewards.append(float(good))
    return rewards


def task_reward(completions: Sequence[Completion], task: Sequence[str], **kwargs: Any) -> list[float]:
    """Return the reasoning-gym task's own score of the completion's final answer (`extract_answer`), in [0, 1].

    `task` is the column that `load_data("reasoning-gym/...")` writes. Many tasks give a little for a wrong answer of
    the right kind, such as 0.01 for any number. A task whose answers are words needs them stated: a number anywhere in
    the completion goes before its last line.
    """
    return [
        score_task(spec, extract_answer(completion_text(completion)))
        for completion, spec in zip(completions, task, strict=True)
    ]
