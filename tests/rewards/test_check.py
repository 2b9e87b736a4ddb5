"""The look at the rewards before training: sound ones pass, broken ones are told what to change."""

import asyncio
import functools
import re

import pytest
import torch
from datasets import Dataset
from trl import rewards as trl_rewards

from credit_trl.rewards.check import check_rewards
from credit_trl.rewards.check_report import reward_warning
from credit_trl.testbed.arithmetic import make_dataset

ASK = "Please reason step by step, and put your final answer within \\boxed{}."


def rows(golds, ask=ASK, column="solution", chat=True):
    texts = [f"Question {number}?\n{ask}" for number in range(len(golds))]
    prompts = [[{"role": "user", "content": text}] if chat else text for text in texts]
    return [{"prompt": prompt, column: gold} for prompt, gold in zip(prompts, golds, strict=True)]


MATH = rows([rf"{number}\sqrt{{{number + 1}}}" for number in range(2, 14)])


def text_of(completion):
    return completion if isinstance(completion, str) else completion[-1]["content"]


def tag_reward(completions, solution, **kwargs):
    found = [re.findall("<answer>(.*?)</answer>", text_of(completion)) for completion in completions]
    return [float(bool(tags) and tags[-1] == gold) for tags, gold in zip(found, solution, strict=True)]


@pytest.mark.parametrize("chat", [True, False], ids=["conversational", "plain"])
@pytest.mark.parametrize(
    ("golds", "reward"),
    [
        ([rf"{number}\pi" for number in range(2, 9)], "accuracy"),
        ([f"so it is {number}\n#### {number}" for number in range(9)], "accuracy"),
        ([0.5, 2e-05, 3, "1,234", "(3,5)"], "accuracy"),
        (["A", "B", "(C)", 3], "choice"),
        (["yes", "no", True, "No"], "yes_no"),
    ],
)
def test_sound_rewards(golds, reward, chat):
    report = check_rewards(rows(golds, chat=chat), reward)
    assert report.ok, str(report)
    assert report.problems == [] and report.bad_rows == 0
    assert reward_warning(report) is None
    assert "All is well" in str(report)


def test_rewards_of_trl():
    assert check_rewards(rows(["4", "17", "5"]), [trl_rewards.accuracy_reward]).ok
    bare_latex = check_rewards(MATH, [trl_rewards.accuracy_reward])
    assert not bare_latex.ok  # it reads 2 of the bare LaTeX 2\sqrt{3}
    assert "no gold of `solution` earns a reward from accuracy_reward" in bare_latex.problems[0]


def test_the_table_shows_the_gold_as_read_and_three_rewards():
    text = str(check_rewards(rows(["6 * 7 is 42\n#### 42", "#### 5"]), "accuracy"))
    assert re.search(r"0  Question 0\?\s+42\s+1\s+0\s+0\n", text)
    assert f"Every prompt ends with: {ASK!r}" in text


def test_a_format_reward_beside_accuracy_is_not_blamed_and_alone_it_is():
    report = check_rewards(MATH, ["format", "accuracy"])
    assert report.ok
    assert "format_reward: 1 for every answer written as \\boxed{...}" in str(report)
    alone = check_rewards(MATH, "format")
    assert "format_reward gives another row's gold the full reward in 12 of 12 rows" in alone.problems[0]


def test_golds_that_cannot_be_read_are_named_by_the_rows_of_the_data_set():
    data = Dataset.from_list([row | {"solution": "???" if place in (3, 7) else "4" + "0" * place}
                              for place, row in enumerate(rows([""] * 10))])  # fmt: skip
    report = check_rewards(data, ["accuracy", "format"])
    assert not report.ok
    assert report.bad_rows == 2
    assert "cannot read `solution` in 2 of 10 rows (row 3, 7)" in report.problems[0]
    warning = reward_warning(report)
    assert warning.count("\n") == 1
    assert "--check_rewards" in warning


def test_choice_golds_of_another_kind_are_reported_and_do_not_raise():
    report = check_rewards(rows(["A", "B", "Paris", "C"]), "choice")
    assert report.problems == [
        "choice_reward cannot read `solution` in 1 of 4 rows (row 2): it gives these no reward, or ends the run. Take "
        "them out, or name another column with answer_column"
    ]


def test_choices_that_the_prompts_do_not_show_are_noted():
    assert "most prompts show no choices" in check_rewards(rows(["A", "B"]), "choice").notes[0]
    shown = rows(["A", "B"], ask="(A) ice (B) iron\nAnswer by a letter within \\boxed{}.")
    assert check_rewards(shown, "choice").notes == []


def test_a_style_that_the_prompt_does_not_ask_for():
    report = check_rewards(MATH, [tag_reward])
    (problem,) = report.problems
    assert "tag_reward does not give the full reward to golds written as \\boxed{...}" in problem
    assert "in 12 of 12 rows (row 0, 1, 2, ...), and gives more for <answer>...</answer>: ask for that" in problem
    assert check_rewards(rows([row["solution"] for row in MATH], ask="Use <answer> tags."), [tag_reward]).ok
    unsaid = check_rewards(rows([row["solution"] for row in MATH], ask="Go."), [tag_reward])
    assert unsaid.ok
    assert "the prompts do not say how to answer, and tag_reward gives most for <answer>" in unsaid.notes[0]
    assert check_rewards(MATH, [tag_reward], style="tags").ok


def test_some_golds_that_earn_less():
    def partial(completions, solution, **kwargs):
        right = trl_rewards.accuracy_reward(completions, solution)
        return [0.5 if gold == solution[0] else reward for gold, reward in zip(solution, right, strict=True)]

    report = check_rewards(rows(["1", "2", "3"]), [partial])
    assert "partial gives the own gold less than the full reward in 1 of 3 rows (row 0)" in report.problems[0]


def test_digits_inside_of_a_longer_number_and_empty_answers():
    def contains(completions, solution, **kwargs):
        return [float(gold in text_of(completion)) for completion, gold in zip(completions, solution, strict=True)]

    report = check_rewards(rows(["1", "2", "12"]), [contains])
    assert "contains gives another row's gold the full reward in 2 of 3 rows (row 0, 1)" in report.problems[0]

    def always(completions, solution, **kwargs):
        return [1.0] * len(completions)

    problems = check_rewards(rows(["1", "2"]), [always]).problems
    assert any("gives an empty answer the full reward in 2 of 2 rows" in problem for problem in problems)


def test_equal_values_in_two_rows_are_not_blamed():
    assert check_rewards(rows(["0.5", r"\frac{1}{2}", "7", "8"]), "accuracy").ok


def test_asynchronous_rewards_partials_and_callables_in_a_running_loop():
    async def later(completions, solution, **kwargs):
        return tag_reward(completions, solution)

    class Scorer:
        def __call__(self, completions, solution, scale=1.0, **kwargs):
            return [scale * reward for reward in tag_reward(completions, solution)]

    for function in (later, functools.partial(Scorer(), scale=2.0), Scorer()):
        assert check_rewards(MATH, [function], style="tags").ok

    async def in_notebook():
        return check_rewards(MATH, [later], style="tags").ok

    assert asyncio.run(in_notebook())


def test_the_testbed_and_data_without_golds():
    assert check_rewards(make_dataset(20), "testbed").ok
    report = check_rewards([{"prompt": "x"}], [lambda completions, **kwargs: [0.0] * len(completions)])
    assert report.ok
    assert "only an empty answer was scored" in report.notes[0]


def test_rows_are_drawn_by_seed_and_bounded():
    data = Dataset.from_list(rows([str(number) for number in range(500)]))
    report = check_rewards(data, "accuracy", rows=32, seed=1)
    assert len(report.places) == 32
    assert report.places == check_rewards(data, "accuracy", rows=32, seed=1).places != list(range(32))
    assert check_rewards(iter(data), "accuracy", rows=5).places == [0, 1, 2, 3, 4]


def test_the_reward_gets_copies():
    data = rows(["1", "2"])

    def spoils(completions, prompts, solution, **kwargs):
        prompts[0].append("x")
        solution.clear()
        return [0.0] * len(completions)

    check_rewards(data, [spoils])
    assert data == rows(["1", "2"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("abc", "the reward broken returned 'abc', not a list"),
        (1.0, "the reward broken returned 1.0, not a list"),
        ([1.0], "the reward broken returned 1 rewards for 2 completions"),
        ([1.0, "x"], "the reward broken returned 'x' in row 1, where a number"),
        ([1.0, [1.0]], r"the reward broken returned \[1.0\] in row 1, where a number"),
        (torch.ones(2, device="meta"), "the reward broken returned a tensor on meta: return a list"),
        ([1.0, torch.ones((), device="meta")], "the reward broken returned a tensor on meta in row 1"),
    ],
)
def test_what_a_reward_must_not_return(returned, message):
    def broken(completions, **kwargs):
        return returned

    with pytest.raises(ValueError, match=message):
        check_rewards(rows(["1", "2"]), [broken])


@pytest.mark.parametrize("returned", [torch.tensor([1.0, 0.0]), [torch.tensor(1.0), None], (True, float("nan"))])
def test_what_a_reward_may_return(returned):
    check_rewards(rows(["1", "2"]), [lambda completions, **kwargs: returned])


@pytest.mark.parametrize(
    ("data", "rewards", "options", "message"),
    [
        ([], "accuracy", {}, "the data set has no rows"),
        ([{"question": "x"}], "accuracy", {}, "no column `prompt`: it has question"),
        ([{"prompt": "x"}], "accuracy", {}, "accuracy_reward needs a column `solution` or `answer`"),
        ([{"prompt": "x"}], [tag_reward], {}, "tag_reward needs a column `solution`"),
        ({"train": MATH, "test": MATH}, "accuracy", {}, "one split of the data set: choose from train, test"),
        (MATH, "acuracy", {}, "unknown reward function 'acuracy'"),
        (MATH, "accuracy", {"style": "latex"}, "unknown style 'latex': use one of boxed, tags"),
        (MATH, "accuracy", {"gold_column": "target"}, "no column `target`: it has prompt, solution"),
    ],
)
def test_bad_input(data, rewards, options, message):
    with pytest.raises(ValueError, match=message):
        check_rewards(data, rewards, **options)
