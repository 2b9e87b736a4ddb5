"""Find where a failed completion first goes wrong: what a localizer is shown, and how its answer is read.

A localizer is "self" (the policy itself, asked with a prompt), "random" (RRPO: any step), or a callable: one of
`localizers/`, or an oracle or program of your own. It names the first erroneous step, counted from 1.
"""

import copy
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, Any]


@dataclass(frozen=True)
class FailedCompletion:
    """Show a localizer a completion whose final answer is wrong.

    Args:
        prompt: as the data set has it, a string or a list of messages; images of the row are in the messages.
        steps: the texts of the completion's steps in order; `first_error = 1` means `steps[0]`.
        columns: the other columns of the data set's row, such as the reference solution.
    """

    prompt: str | list[Message]
    steps: tuple[str, ...]
    columns: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_row(cls, row: dict[str, Any], steps: tuple[str, ...]) -> "FailedCompletion":
        """Return the completion of a row of the data set, with copies of its columns: a localizer may change them."""
        columns = copy.deepcopy(row)
        return cls(columns.pop("prompt"), steps, columns)

    @property
    def completion(self) -> str:
        """Return the whole completion: the steps with their delimiters."""
        return "".join(self.steps)

    @property
    def problem(self) -> str:
        """Return the prompt as one text, without the system's messages and with the roles of several others."""
        if isinstance(self.prompt, str):
            return self.prompt
        messages = [message for message in self.prompt if message["role"] != "system"]
        if len(messages) == 1:
            return _content(messages[0])
        return "\n\n".join(f"{message['role'].capitalize()}: {_content(message)}" for message in messages)


Localizer = Literal["self", "random"] | Callable[[list[FailedCompletion]], Sequence[int | None]]

# The authors' code has its question, and this one asks for the same in words of our own: the step at which the error
# starts, no new solution, a number in a box on a line of its own. That every step is judged first is ours. Without
# it a 7B model mostly answers with a bare number.
DEFAULT_TEMPLATE = """\
Below are a problem and a solution in {num_steps} numbered steps. The final answer of the solution is wrong.

Problem:
{problem}

Solution:
{steps}

Find the step at which the error starts. It can be earlier than the step at which the error shows. Do not solve the \
problem anew. Judge the steps in order, one line for each: what it claims, and whether that follows from the problem \
and the steps before it. Then write the number h of the first wrong step, 1 to {num_steps}, on a last line of its own \
as \\boxed{h}."""

_FIELD = re.compile(r"\{(problem|steps|completion|num_steps)\}")

# How a box is read: LaTeX that only changes the look of its content, its numbers, what makes it mathematics, its words.
_BOX = re.compile(r"\\boxed\s*\{")
_LONGEST_BOX = 400  # characters; one that does not end before that is a slip
_LOOK = re.compile(
    r"\\(?:text[a-z]*|math(?:bf|rm|it|sf|tt|normal)|operatorname|boldsymbol|bm|bf|rm|emph|underline|[mh]box|boxed|left|right"
    r"|displaystyle|[qQ]?quad|(?:[lL]arge|LARGE|[hH]uge))(?![A-Za-z])|\\[ ,;:!()\[\]{}#]"
    r"|\^\{?(?:\*|\\ast|\\star)\}?|\*\*|[{}$~_#]"
)
_ORDINAL = re.compile(r"([0-9])\s*\^?\s*(?:st|nd|rd|th)(?![A-Za-z])")
_NOT_APPLICABLE = re.compile(r"(?<![A-Za-z])n/a(?![A-Za-z])", re.IGNORECASE)
_NAMED_STEP = re.compile(r"steps?[^0-9A-Za-z]*([0-9]+)(?![0-9.]*[0-9A-Za-z])", re.IGNORECASE)
_NUMBER = re.compile(r"(?:(?<![^\s=])[+-])?(?<![0-9A-Za-z.])[0-9]+(?![0-9]*[A-Za-z]|\.?[0-9])")
_MATHEMATICS = re.compile(
    r"\\|[*/^<>%]|[0-9A-Za-z)]\s*\+|(?<![A-Za-z])(?![aAiIhH](?![A-Za-z]))[A-Za-z](?![A-Za-z])|(?<![A-Za-z])[aAiI]\s*="
)
_WORD = re.compile(r"[A-Za-z]{2,}|[^\W\d_a-zA-Z]")


def check_template(template: str) -> str:
    """Return `template`. Raises `ValueError` where a localizer would see no problem or no solution."""
    fields = set(_FIELD.findall(template))
    if "problem" not in fields or not fields & {"steps", "completion"}:
        raise ValueError(
            "template must have the fields {problem} and {steps} (numbered) or {completion} (as it was written), got "
            f"{template!r}"
        )
    return template


def format_localization_prompt(
    failed: FailedCompletion, template: str = DEFAULT_TEMPLATE, *, chat: bool = False
) -> str | list[Message]:
    """Return what the policy is asked about `failed`: a user message if the prompt is a conversation, else a string.

    The prompt's images come before the text.

    Args:
        chat: whether a prompt that is a string makes a user message too.
        template: a text in which `{problem}`, `{steps}` (each on its own, "Step 1: ..."), `{completion}` (as it was
            written) and `{num_steps}` are filled in. All other braces, as in `\\boxed{h}`, stay as they are.

    Raises:
        ValueError: a template without a problem or a solution, see `check_template`.
    """
    values = {
        "problem": failed.problem,
        "steps": "\n\n".join(f"Step {h}: {step.strip()}" for h, step in enumerate(failed.steps, start=1)),
        "completion": failed.completion,
        "num_steps": str(len(failed.steps)),
    }
    text = _FIELD.sub(lambda match: values[match[1]], check_template(template))
    if isinstance(failed.prompt, str):
        return [{"role": "user", "content": text}] if chat else text
    images = [part for message in failed.prompt for part in _parts(message) if part["type"] == "image"]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}] if images else text}]


def parse_localization(text: str, num_steps: int) -> int | None:
    """Return the step that the last `\\boxed{}` of `text` to speak of steps names; None where it names none.

    A box names a step by its number, with or without words around it: `2`, `Step 2`, `h = 2`, `\\textbf{2}`. A box of
    words alone (`none`) withdraws what came before it. A box of mathematics (`2 * 9`, `x = 5`, `h`) says nothing of
    steps and is passed over. A number that is not in 1 .. num_steps is an answer too, and no earlier one is taken.
    """
    for start in reversed([match.end() for match in _BOX.finditer(text)]):
        content = _until_brace(text[start : start + _LONGEST_BOX])
        if content is None:
            continue
        plain = _NOT_APPLICABLE.sub("none", _ORDINAL.sub(r"\1 ", _LOOK.sub(" ", content))).strip()
        numbers = _NAMED_STEP.findall(plain) or _NUMBER.findall(plain)
        if len(set(numbers)) == 1 and (_NAMED_STEP.search(plain) or not _MATHEMATICS.search(plain)):
            # A number longer than that is out of range, and Python refuses to read a very long one.
            return int(numbers[0]) if len(numbers[0]) <= 12 and 1 <= int(numbers[0]) <= num_steps else None
        if _WORD.search(plain) and not _MATHEMATICS.search(plain):
            return None
    return None


def _until_brace(text: str) -> str | None:
    """Return the part of `text` before the brace that closes a box opened before it; None without such a brace."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, flags=re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[: match.start()]
    return None


def most_voted(steps: Sequence[int | None]) -> int | None:
    """Return the step that most answers name, the earliest of equals; None where no answer names one."""
    votes = Counter(step for step in steps if step is not None)
    return min(votes, key=lambda step: (-votes[step], step), default=None)


def first_errors(
    localizer: Localizer,
    failed: list[FailedCompletion],
    question: Callable[[FailedCompletion], str | list[Message]],
    ask: Callable[[list], list[list[str]]],
) -> list[int | None]:
    """Return the 1-based step of the first error of each completion; None where the localizer names none.

    Args:
        question: what the policy is asked about a completion where `localizer` is "self".
        ask: answers each question with one or more texts, whose votes are counted; it is called with none too.
    """
    if localizer == "random":
        return [None] * len(failed)
    if callable(localizer):
        return call_localizer(localizer, failed)
    answers = ask([question(completion) for completion in failed])
    return [
        most_voted([parse_localization(text, len(completion.steps)) for text in texts])
        for texts, completion in zip(answers, failed, strict=True)
    ]


def check_localizer(localizer: Localizer) -> Localizer:
    """Return `localizer`. Raises `ValueError` unless it is "self", "random" or a callable."""
    if callable(localizer) or localizer in ("self", "random"):
        return localizer
    raise ValueError(
        "localizer must be 'self', 'random' or a callable that takes a list of FailedCompletion and returns the "
        f"1-based step of the first error of each, got {localizer!r}"
    )


def call_localizer(
    localizer: Callable[[list[FailedCompletion]], Sequence[int | None]], failed: list[FailedCompletion]
) -> list[int | None]:
    """Return the answers of a callable localizer, one for each of `failed`: None where it names no step.

    An answer that is None, no integer or out of range means that the localizer does not know: the caller counts it
    and falls back to a random step. With nothing to localize the callable is not called.

    Raises:
        ValueError: not one answer for each completion.
    """
    if not failed:
        return []
    answers = localizer(list(failed))
    if not isinstance(answers, Iterable):
        raise ValueError(f"localizer must return a list of {len(failed)} integers, got {answers!r}")
    answers = list(answers)
    if len(answers) != len(failed):
        raise ValueError(
            f"localizer returned {len(answers)} answers for {len(failed)} failed completions: return one for each, in "
            "order, and None where no step is to be named"
        )
    return [_step_number(answer, len(failure.steps)) for answer, failure in zip(answers, failed, strict=True)]


def _step_number(answer: Any, num_steps: int) -> int | None:
    if isinstance(answer, bool):
        return None
    try:
        step = operator.index(answer)  # integers of NumPy and PyTorch too
    except TypeError:
        return None
    return step if 1 <= step <= num_steps else None


def _parts(message: Message) -> list[dict[str, Any]]:
    content = message["content"]  # None beside the calls of tools
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []


def _content(message: Message) -> str:
    # A data set gives all parts the same keys, so that an image has the text None.
    return "".join(part.get("text") or "" for part in _parts(message))
