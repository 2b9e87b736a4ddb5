"""Score completions by a reward function, and read the answer that each completion votes for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..rewards.answers import completion_text, extract_answer, extract_choice, extract_yes_no
from ..rewards.registry import REWARDS
from ..testbed.arithmetic import STEP_DELIMITER


def _testbed_answer(text: str) -> str:
    return text.rpartition(STEP_DELIMITER)[2]


# What a completion votes for; "accuracy" has its own way, and programs are not put to the vote.
_VOTES: dict[str, Callable[[str], str | None]] = {
    "choice": extract_choice,
    "yes_no": extract_yes_no,
    "task": extract_answer,
    "testbed": _testbed_answer,
}


def score(
    scorer: str, completions: Sequence[str | list[dict[str, str]]], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[float | None], list[str | None] | None]:
    """Score `completions`, each on the problem in the row of `rows` beside it.

    Returns the scores, 1 for a correct completion and `None` where the reward cannot judge the problem; and the answers
    that the completions vote for: `None` for a completion without one, and `None` in place of the list where a vote
    makes no sense (code). Mathematical answers vote as math-verify reads them: "\\frac{1}{2}" and "1/2" are one.
    """
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    logged: dict[str, list] = {}
    arguments = TRAINER_ARGUMENTS | {"log_extra": logged.__setitem__}
    scores = list(
        REWARDS[scorer](
            prompts=[row["prompt"] for row in rows],
            completions=completions,
            completion_ids=[[]] * len(completions),
            **columns,
            **arguments,
        )
    )
    if scorer == "accuracy":
        return scores, [_math_vote(answer) for answer in logged["answer_parsed"]]
    if scorer in _VOTES:
        return scores, [_VOTES[scorer](completion_text(completion)) for completion in completions]
    return scores, None


def _math_vote(parsed: str) -> str | None:
    """Return what a mathematical answer votes for, from the text that the reward logs of it.

    The text is math-verify's list "[expression, 'its text']". The expression votes, or the text where there is none.
    """
    if parsed in ("[unparseable]", "[skipped]"):
        return None
    return parsed.rpartition(", '")[0].removeprefix("[") or parsed


# What TRL's trainers hand to reward functions beside the completions; there is no training here to log to.
TRAINER_ARGUMENTS = {
    "trainer_state": None,
    "log_extra": lambda column, values: None,
    "log_metric": lambda name, value: None,
}
