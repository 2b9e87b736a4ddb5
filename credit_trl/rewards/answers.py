"""Verifiable rewards in TRL's reward-function signature, for conversational and for plain-string completions.

A final answer is written as `\\boxed{...}`, which is what the prompts of `credit_trl.data` ask for. `extract_answer` is
more lenient, as small models often end on a number and never box it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from trl import rewards as trl_rewards

from ..data.reasoning_gym import score_task

RewardFunction = Callable[..., Sequence[float | None]]

_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")

# The last "the answer is ..." or "Answer: ..." of a text, up to the end of its line.
_STATEMENT = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*:)[ \t*]*([^\n]*)", re.IGNORECASE)
_OPENING = r"[\s$*({\[]*(?:\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{[\s(]*)?"  # what may stand before a letter or word
_LETTER = re.compile(_OPENING + r"([A-Z])(?=\s*(?:[).:,;}\]*$]|\Z))")  # "B", "(B) 42", "\text{B}.", not "B is wrong"
_YES_NO = re.compile(_OPENING + r"(yes|no|true|false)\b", re.IGNORECASE)
_AFTER_ANSWER = re.compile(r"[\s.$*\])]*")  # closes a sentence, a formula or bold type


def completion_text(completion: str | list[dict[str, str]]) -> str:
    """The text of a completion: the string itself, or the content of its last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def boxed_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of the content of every complete `\\boxed{...}` of `text`; braces inside may nest."""
    spans = []
    for match in re.finditer(r"\\boxed\{", text):
        depth = 1
        for position in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                spans.append((match.end(), position))
                break
    return spans


def extract_answer(text: str) -> str:
    """The final answer that `text` states, by the first of these rules that applies:

    1. the content of the last `<answer>...</answer>`;
    2. the content of the last `\\boxed{...}`;
    3. the last number: "12 + 7 - 4 = 21 - 4 = 17." gives "17";
    4. the last line that is not empty.
    """
    tagged = _ANSWER_TAG.findall(text)
    if tagged:
        return tagged[-1].strip()
    spans = boxed_spans(text)
    if spans:
        return text[slice(*spans[-1])].strip()
    numbers = _NUMBER.findall(text)
    if numbers:
        return numbers[-1]
    return text.strip().rpartition("\n")[2].strip()


def accuracy_reward(
    completions: Sequence[str | list[dict[str, str]]],
    solution: Sequence[str] | None = None,
    answer: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """1.0 where math-verify finds the completion equal to `solution` (or `answer`), 0.0 where not.

    The check is `trl.rewards.accuracy_reward`, whose rules hold: the completion's answer must be LaTeX, best in
    `\\boxed{...}`, and the reward is `None` where the solution cannot be parsed. Raises `ValueError` when the data set
    has neither column.
    """
    expected = answer if solution is None else solution
    if expected is None:
        raise ValueError("accuracy_reward needs a column `solution` or `answer`; name yours with answer_column")
    messages = [[{"role": "assistant", "content": completion_text(completion)}] for completion in completions]
    return trl_rewards.accuracy_reward(messages, [str(text) for text in expected], log_extra=kwargs.get("log_extra"))


def stated_answer(text: str) -> str | None:
    """What `text` says in so many words to be its answer, by the first of these rules that applies, or `None`:

    1. the content of the last `<answer>...</answer>`;
    2. the content of the last `\\boxed{...}`;
    3. the rest of the line after the last "answer is" or "answer:".
    """
    tagged = _ANSWER_TAG.findall(text)
    if tagged:
        return tagged[-1]
    spans = boxed_spans(text)
    if spans:
        return text[slice(*spans[-1])]
    statements = _STATEMENT.findall(text)
    return statements[-1] if statements else None


def extract_choice(text: str) -> str | None:
    """The capital letter that the stated answer of `text` begins with, as in "(B) because ...", or `None`."""
    match = _LETTER.match(stated_answer(text) or "")
    return match[1] if match else None


def extract_yes_no(text: str) -> str | None:
    """ "yes" or "no", as the stated answer of `text` begins with it or with "true" or "false", or `None`."""
    match = _YES_NO.match(stated_answer(text) or "")
    if match is None:
        return None
    return "yes" if match[1].lower() in ("yes", "true") else "no"


def choice_reward(
    completions: Sequence[str | list[dict[str, str]]], solution: Sequence[str], **kwargs: Any
) -> list[float]:
    """1.0 where the letter that the completion chooses (`extract_choice`) is `solution`, such as "B", else 0.0."""
    chosen = [extract_choice(completion_text(completion)) for completion in completions]
    return [float(letter == expected) for letter, expected in zip(chosen, solution, strict=True)]


def yes_no_reward(
    completions: Sequence[str | list[dict[str, str]]], solution: Sequence[str], **kwargs: Any
) -> list[float]:
    """1.0 where the completion answers (`extract_yes_no`) as `solution`, which is "yes" or "no", else 0.0."""
    answers = [extract_yes_no(completion_text(completion)) for completion in completions]
    return [float(answer == expected) for answer, expected in zip(answers, solution, strict=True)]


def format_reward(completions: Sequence[str | list[dict[str, str]]], **kwargs: Any) -> list[float]:
    """1.0 where the completion has exactly one `\\boxed{...}`, not empty, and ends with it; else 0.0.

    Only what closes a sentence, a formula or bold type may follow the box.
    """
    rewards = []
    for text in map(completion_text, completions):
        spans = boxed_spans(text)
        good = (
            len(spans) == text.count("\\boxed") == 1
            and text[slice(*spans[0])].strip() != ""
            and _AFTER_ANSWER.fullmatch(text, spans[0][1] + 1) is not None
        )
        rewards.append(float(good))
    return rewards


def task_reward(completions: Sequence[str | list[dict[str, str]]], task: Sequence[str], **kwargs: Any) -> list[float]:
    """The reasoning-gym task's own score of the completion's final answer (`extract_answer`), in [0, 1].

    `task` is the column that `load_data("reasoning-gym/...")` writes. Many tasks give a little for a wrong answer of
    the right kind, such as 0.01 for any number. A task whose answers are words needs them boxed or tagged: a number
    anywhere in the completion goes before its last line.
    """
    return [
        score_task(spec, extract_answer(completion_text(completion)))
        for completion, spec in zip(completions, task, strict=True)
    ]
