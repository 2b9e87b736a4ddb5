"""The guide shows what `check_rewards` prints, on a sound data set and on three broken ones."""

import re
from pathlib import Path

import pytest

from credit_trl.rewards.check import check_rewards
from tests.rewards.test_check import ASK, tag_reward, text_of

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "rewards.md"


def rows(problems, ask=ASK):
    return [
        {"prompt": [{"role": "user", "content": f"{question}\n{ask}"}], "solution": gold} for question, gold in problems
    ]


def contains_reward(completions, solution, **kwargs):
    return [float(gold in text_of(completion)) for completion, gold in zip(completions, solution, strict=True)]


LATEX = [
    ("What is the diagonal of a 2 by 4 rectangle?", r"2\sqrt{5}"),
    ("Where do y = x + 2 and y = 2x - 1 meet?", "(3,5)"),
    ("Solve x^2 = x.", "0,1"),
    ("What does the book cost after the rebate?", r"\$18.90"),
]
SETS = {
    "plain LaTeX, as in MATH": (rows(LATEX), ["accuracy", "format"]),
    "golds that are missing": (rows([*LATEX[:2], ("Prove that 2 is prime.", "N/A"), ("Why?", None)]), ["accuracy"]),
    "a reward that wants another form than the prompts": (rows([("1 + 1?", "2"), ("2 + 3?", "5")]), [tag_reward]),
    "a reward that looks for the gold anywhere": (rows([("1 + 1?", "2"), ("7 + 5?", "12"), ("2 + 3?", "5")]),
                                                   [contains_reward]),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_the_guide_shows_the_report(name):
    data, rewards = SETS[name]
    report = check_rewards(data, rewards)
    assert report.ok == (name == next(iter(SETS)))
    shown = re.search(rf"{re.escape(name)}.*?```text\n(.*?)```", GUIDE.read_text(), re.DOTALL | re.IGNORECASE)
    assert shown[1].strip() == str(report).strip()
