"""Rewards: what counts as a right answer, in both of TRL's forms of a completion."""

import sys

import pytest

from credit_trl.data.loading import load_data
from credit_trl.rewards.answers import extract_answer, format_reward, task_reward
from credit_trl.rewards.mathematics import accuracy_reward
from credit_trl.rewards.registry import check_columns, load_reward
from credit_trl.testbed.arithmetic import answer_reward


def chat(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("12 + 7 - 4 = 21 - 4 = 17", "17"),
        ("12 + 7 - 4 = 21 - 4 = 17.", "17"),
        ("It costs $1,234.50 in total.", "1,234.50"),
        ("so x = -3", "-3"),
        ("that leaves 8-3", "3"),  # a difference, not minus three
        ("the odds are 3/4.", "3/4"),
        ("in room B12 nobody", "in room B12 nobody"),  # part of a name, not a number
        ("first \\boxed{1}, no: \\boxed{\\frac{1}{2}} and 9 more", "\\frac{1}{2}"),
        ("\\boxed{2} but <answer> 3\n</answer> is 4", "3"),
        ("\\boxed{never closed 5", "5"),
        ("They are cousins.\nSo: uncle\n\n", "So: uncle"),
        ("", ""),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("form", [chat, lambda *texts: list(texts)], ids=["conversational", "plain"])
@pytest.mark.parametrize("column", ["solution", "answer"])
def test_accuracy_compares_values_and_skips_golds_that_cannot_be_parsed(form, column):
    completions = form("\\boxed{0.5}", "\\boxed{\\frac{1}{3}}", "half", "\\boxed{7}")
    # 0.5 = 1/2; 1/3 is another value; no LaTeX; and a gold that is no expression at all.
    assert accuracy_reward(completions, **{column: ["\\frac{1}{2}", "\\frac{1}{2}", "\\frac{1}{2}", "???"]}) == [
        1.0,
        0.0,
        0.0,
        None,
    ]


def test_accuracy_takes_numbers_as_gold_and_prefers_solution():
    assert accuracy_reward(["\\boxed{4}"], solution=[4], answer=["long text"]) == [1.0]


def test_accuracy_without_gold_names_the_columns():
    with pytest.raises(ValueError, match="needs a column `solution` or `answer`"):
        accuracy_reward(["\\boxed{4}"], target=["4"])


@pytest.mark.parametrize("form", [chat, lambda *texts: list(texts)], ids=["conversational", "plain"])
@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("so \\boxed{4}", 1.0),
        ("so $\\boxed{\\frac{1}{2}}$.", 1.0),
        ("so **\\boxed{4}**\n", 1.0),
        ("so \\boxed{4} apples", 0.0),
        ("\\boxed{3} or \\boxed{4}", 0.0),
        ("so \\boxed{ }", 0.0),
        ("so \\boxed{4", 0.0),
        ("so 4", 0.0),
    ],
)
def test_format(form, text, reward):
    assert format_reward(form(text)) == [reward]


@pytest.mark.parametrize("form", [chat, lambda *texts: list(texts)], ids=["conversational", "plain"])
def test_task_reward_is_the_tasks_own_score(form):
    rows = load_data("reasoning-gym/chain_sum", size=2, seed=3, dataset_kwargs={"max_terms": 2, "max_digits": 1})
    first, second = rows["solution"]
    completions = form(f"The sum is {first}.", f"\\boxed{{{int(second) + 1}}}")
    assert task_reward(completions, task=list(rows["task"])) == [1.0, 0.0]
    # The second completion was judged by the second row: with the rows exchanged its answer still has to be wrong or
    # right by the other problem's answer.
    assert task_reward(form(second), task=[rows["task"][1]]) == [1.0]


def test_task_reward_gives_what_the_scorer_gives_for_wrong_numbers():
    rows = load_data("reasoning-gym/gsm_symbolic", size=1)
    wrong = str(int(float(rows["solution"][0])) + 1)
    assert task_reward([wrong, "no idea"], task=[rows["task"][0]] * 2) == [0.01, 0.0]  # gsm_symbolic's own numbers


def test_load_reward_by_name_and_by_dotted_path():
    assert load_reward("accuracy") is accuracy_reward
    assert load_reward("testbed") is answer_reward
    assert load_reward("credit_trl.rewards.format_reward") is format_reward


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "acuracy",
            "unknown reward function 'acuracy': use one of accuracy, choice, code, countdown, format, task",
        ),
        ("no_such_package.reward", "No module named 'no_such_package'"),
        ("credit_trl.rewards.acuracy_reward", "no attribute 'acuracy_reward'"),
        ("credit_trl.data.BOXED_INSTRUCTION", "is a str, which cannot be called"),
        ("credit_trl.rewards.trl_rewards.accuracy_reward", "No module named 'credit_trl.rewards.trl_rewards'"),
        ("credit_trl.rewards.__class__", "no dotted path of a public function"),
        ("os._exit", "no dotted path of a public function"),
        ("..rewards.format_reward", "no dotted path of a public function"),
        ("credit_trl.rewards.format_reward()", "no dotted path of a public function"),
    ],
)
def test_load_reward_says_what_is_wrong(name, message):
    with pytest.raises(ValueError, match=message):
        load_reward(name)


def test_load_reward_imports_what_is_named_and_nothing_beside_it(tmp_path, monkeypatch):
    for package in ("mine", "mine/other"):
        (tmp_path / package).mkdir()
    for module in ("mine/__init__", "mine/rewards", "mine/secrets", "mine/other/__init__", "unrelated"):
        (tmp_path / f"{module}.py").write_text("def reward(completions, **kwargs):\n    return [1.0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    assert load_reward("mine.rewards.reward")(["x"]) == [1.0]
    assert set(sys.modules) - before == {"mine", "mine.rewards"}
    with pytest.raises(ValueError, match=r"No module named 'mine\.other\.reward'"):
        load_reward("mine.other.reward.reward")  # no names inside of what a module holds


def test_load_reward_does_not_hide_a_broken_module(tmp_path, monkeypatch):
    (tmp_path / "my_broken_rewards.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        load_reward("my_broken_rewards.reward")


def test_check_columns_knows_what_the_trainer_passes():
    def reward(prompts, completions, completion_ids, target, weight=1.0, log_metric=None, **kwargs):
        return []

    check_columns([reward, accuracy_reward, format_reward], ["prompt", "target", "answer"])
    with pytest.raises(ValueError, match=r"reward needs a column `target`, and the data set has prompt, answer"):
        check_columns([reward], ["prompt", "answer"])
    with pytest.raises(ValueError, match=r"accuracy_reward needs a column `solution` or `answer`.*has prompt, target"):
        check_columns([accuracy_reward], ["prompt", "target"])
