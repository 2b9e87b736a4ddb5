"""What a model answers is never run, and what it answers rightly still counts."""

import ast
import inspect
import textwrap

import pytest
from reasoning_gym.factory import DATASETS

from credit_trl.data.loading import load_data
from credit_trl.data.reasoning_gym import EXPRESSIONS, LISTS, NO_ANSWER, scorable
from credit_trl.rewards.answers import task_reward

# They evaluate their own answers, not the model's.
OF_THEIR_OWN = {"number_sorting"}


def evaluates(dataset: type) -> bool:
    tree = ast.parse(textwrap.dedent(inspect.getsource(dataset.score_answer)))
    called = {ast.unparse(one.func).split(".")[-1] for one in ast.walk(tree) if isinstance(one, ast.Call)}
    return bool(called & {"eval", "exec", "parse_expr", "sympify", "compile"})


def test_the_tasks_that_evaluate_answers_are_known():
    """reasoning-gym may add one: read whether it is the model's answer that is evaluated."""
    found = {name for name, (dataset, _) in DATASETS.items() if evaluates(dataset)}
    assert found - OF_THEIR_OWN == LISTS | EXPRESSIONS


@pytest.mark.parametrize("task", sorted(LISTS | EXPRESSIONS))
def test_a_problem_names_its_scorer(task):
    """`composite` mixes tasks and hands an answer on to the one that the problem names."""
    dataset, config = DATASETS[task]
    assert dataset(config(size=1, seed=0))[0]["metadata"]["source_dataset"] == task


@pytest.mark.parametrize("task", sorted(LISTS | EXPRESSIONS))
def test_an_answer_is_not_run_and_a_right_one_counts(task, tmp_path):
    rows = load_data(f"reasoning-gym/{task}", size=1)
    spec, right = rows["task"], rows["solution"][0]
    path = tmp_path / "written"
    writes = f"open({str(path)!r}, 'w')"
    imports = f"__import__('pathlib').Path({str(path)!r}).touch()"
    for hostile in (writes, f" {writes}", f"[{writes}]", f"{imports}!", f"(lambda: {imports})()", f"{imports} # 1"):
        (score,) = task_reward([f"<answer>{hostile}</answer>"], task=spec)
        assert score <= 0.05
        assert not path.exists(), hostile
    (score,) = task_reward([f"<answer>{right}</answer>"], task=spec)
    assert score == 1.0


def test_a_list_still_gets_its_part_of_the_reward():
    rows = load_data("reasoning-gym/spiral_matrix", size=1)
    numbers = [int(one) for one in rows["solution"][0].split()]
    assert task_reward([f"<answer>{numbers}</answer>"], task=rows["task"]) == [0.1]


@pytest.mark.parametrize(
    "text", ["(12 + 7)*3 - 4/2", "x**3/3 - 2*x + C", "-2*x**(-1/2) + sin(3*x)*exp(-x)", "6*x**2*y - 0.5", " 1 + 2 "]
)
def test_arithmetic_is_scored(text):
    assert scorable("countdown", text) == text


@pytest.mark.parametrize(
    "text",
    [
        "os.system", "(1).real", "S('1')", "foo(1)", "sin(x, 2)", "log(x=1)", "9**9**9", "(9**99)**99", "2**1000",
        "9**x", "5!", "'a'", "[1]", "1 if x else 2", "lambda: 1", "x # y", "1" * 2000, "(" * 400 + "1" + ")" * 400,
        "1e400", "10**20*99999999999999999", "xy", "",
    ],
)  # fmt: skip
def test_what_is_not_plain_arithmetic_is_not(text):
    assert scorable("countdown", text) == NO_ANSWER
    assert scorable("gsm_symbolic", text) == text  # compared as text


@pytest.mark.parametrize("text", ["[[1, 2], ['a', '-1']]", "_ Q _\nQ _ _", "ABC DEF"])
def test_lists_and_rows_are_scored(text):
    assert scorable("n_queens", text) == text


@pytest.mark.parametrize("text", ["open('x')", "a.b", "['a' * 9]", "[0 for a in 'xx' for b in 'xx']", "a: 1", "{1}"])
def test_what_is_more_than_a_list_is_not(text):
    assert scorable("n_queens", text) == NO_ANSWER
