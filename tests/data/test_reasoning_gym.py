"""What a model answers is never run, never ends or stalls a run, and what it answers rightly still counts."""

import ast
import inspect
import json
import math
import textwrap
import time

import pytest
import reasoning_gym
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reasoning_gym.factory import DATASETS

from credit_trl.data.loading import load_data
from credit_trl.data.reasoning_gym import _entry, _make_task, score_task
from credit_trl.data.reasoning_gym_answers import EXPRESSIONS, INTEGRALS, LISTS, NO_ANSWER, scorable
from credit_trl.rewards.answers import task_reward

# They evaluate their own answers, not the model's.
OF_THEIR_OWN = {"number_sorting"}
TASKS = sorted(DATASETS.keys() - {"composite"})  # "composite" hands answers on to the scorers of others
ENTRY = {"answer": "1", "metadata": {}}

# Sixty answers of the wrong kind, for whatever task.
JUNK = ["", " ", "\n\n", "\x00", "\ud800", *"""
?|two times three|0|-1|1/0|3.5|1e999|nan|nani|inf|-inf|²|٣|−3|1,2|1, 2, x|[]|[[]]|[1]|[1, 2|{}|{"a": 1}|null|None
[null]|[[1,2],[3]]|[["a"]]|"x"|()|)|2 × x|A|a b c|🙂|- -|x = |=|$\\frac{1}{0}$|\\boxed{}|a/b|25:99|2020-13-45
1 day, 2:00|a->b|a: b, c: d|Move disk 9 from Peg 9 to Peg 9|[(0, 1)]|["pour A->Z"]|{"0": [1]}|[[[1]]]|¬|A is a knight
LRUD|x**2|0 0 0|[NaN]|[1e999]|{"a":{}}|%s|Infinity days
""".strip().replace("\n", "|").split("|")]  # fmt: skip

# Short or long answers on which some scorer would compute for long, or fail for their size.
HOSTILE = [
    "9" * 4000, "9" * 4000 + " days", "9" * 4000 + ":00", "9" * 4000 + " days, 1:00", "1:00:00." + "9" * 400,
    "1e9999999", "-1e-9999999", "1e99999", "R99999999", "(R U)99999999", "A+99999999", "A-99999999",
    "exp(exp(exp(99)))",
    "(x+y+z)**99", "sin(" * 100 + "x" + ")" * 100, "sqrt(sin(x)+sqrt(cos(x)+sqrt(tan(x)+sqrt(x))))", "1+" * 490 + "1",
    "¬" * 5000 + "P", "(" * 5000 + "P" + ")" * 5000, "P" + "→P" * 3000, "(P∧" * 300 + "P" + ")" * 300,
    "[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900,
    json.dumps(dict.fromkeys(map(str, range(999)), 1)),
    json.dumps([[1] * 300] * 300), "UDLR" * 25_000, "a b " * 25_000, "1 " * 50_000, " " * 100_000, "Q\n" * 50_000,
]  # fmt: skip


def problem(name: str, index: int = 0, seed: int = 3, size: int = 1) -> tuple[str, dict]:
    """The content of the column `task`, and the problem as reasoning-gym made it."""
    spec = {"name": name, "size": size, "seed": seed, "options": {}}
    return json.dumps({**spec, "index": index}), _entry(_make_task(json.dumps(spec)), index)


def own_answer(entry: dict) -> str | None:
    """The answer that the task has for its problem, also where several are right and it stands in the metadata."""
    metadata = entry["metadata"]
    possible = [entry["answer"], metadata.get("possible_answer"), metadata.get("example_correct_answer")]
    possible.append(metadata.get("example_answer"))
    found = next((answer for answer in possible if answer is not None), None)
    return found if found is None or isinstance(found, str) else json.dumps(found)


@pytest.mark.parametrize("name", TASKS)
def test_junk_neither_raises_nor_earns_full_reward(name):
    spec, entry = problem(name)
    for junk in JUNK:
        score = score_task(spec, junk)
        assert 0 <= score <= 1
        assert score < 1 or right_by_chance(junk, entry), junk


def right_by_chance(junk: str, entry: dict) -> bool:
    """Whether a short answer such as 0 is what the problem asks for, in another form."""
    if entry["answer"] is None:
        return False
    try:
        return math.isclose(float(junk), float(entry["answer"]), abs_tol=1e-3)
    except ValueError:
        return junk.strip().lower() == entry["answer"].strip().lower()


WRAPPINGS = [
    "\\boxed{%s}", "\\boxed{\\text{%s}}", "<answer>%s</answer>", "<answer>\\boxed{%s}</answer>",
    "<answer>**%s**</answer>", "<answer>$%s$</answer>", "<answer>`%s`</answer>", "<answer>```\n%s\n```</answer>",
    "$\\boxed{%s}$", "<answer>%s.</answer>",
    "3 + 4 = 7, so the answer is \\boxed{%s}.", "<think>I try 1 and 2.</think>\n<answer>\n%s\n</answer>",
]  # fmt: skip
WITHOUT_OWN_ANSWER = {"boxnet", "rush_hour"}  # any plan that works is right, and none is given


@pytest.mark.parametrize("name", TASKS)
def test_the_own_answer_earns_full_reward_in_each_wrapping(name):
    for index in range(2):
        spec, entry = problem(name, index, seed=7, size=2)
        own = own_answer(entry)
        if own is None:
            assert name in WITHOUT_OWN_ANSWER
            continue
        rewards = task_reward([wrapping.replace("%s", own) for wrapping in WRAPPINGS], task=[spec] * len(WRAPPINGS))
        assert dict(zip(WRAPPINGS, rewards, strict=True)) == dict.fromkeys(WRAPPINGS, 1.0)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.slow
def test_no_answer_stalls(name):
    for index in range(4):  # problems of a task may have scorers of their own
        spec, _ = problem(name, index, seed=11, size=4)
        for hostile in HOSTILE:
            start = time.process_time()
            assert 0 <= score_task(spec, hostile) < 1
            assert time.process_time() - start < 2, hostile[:40]


HOSTILE_TASKS = [
    "boxnet", "calendar_arithmetic", "codeio", "coin_flip", "countdown", "game_of_life", "intermediate_integration",
    "polynomial_multiplication", "prime_factorization", "propositional_logic", "puzzle24", "rubiks_cube", "rush_hour",
    "simple_integration", "time_intervals",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_TASKS)
def test_tasks_whose_scorers_fail_or_stall(name):
    spec, _ = problem(name, seed=11)
    for hostile in HOSTILE:
        start = time.process_time()
        assert 0 <= score_task(spec, hostile) < 1
        assert time.process_time() - start < 2, hostile[:40]


ANSWERS = st.one_of(
    st.text(max_size=40),
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(
        inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8).map(json.dumps),
    st.lists(st.sampled_from([*JUNK, "1", "x", "+", "(", ")", ",", "\n", " "]), max_size=6).map("".join),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_no_text_raises(name):
    spec, entry = problem(name, seed=5)
    own = own_answer(entry) or "1"

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(ANSWERS | st.permutations(list(own[:60])).map("".join) | ANSWERS.map(lambda text: own + text))
    def score(answer):
        assert 0 <= score_task(spec, answer) <= 1

    score()


def test_what_is_no_fault_of_the_answer_is_not_hidden(monkeypatch):
    spec, _ = problem("chain_sum")
    task = _make_task(json.dumps({"name": "chain_sum", "size": 1, "seed": 3, "options": {}}))
    for error, hidden in ((KeyError("x"), True), (RecursionError(), True), (OSError("disk"), False)):

        def fail(answer, entry, error=error):
            raise error

        monkeypatch.setattr(task, "score_answer", fail)
        if hidden:
            assert score_task(spec, "1") == 0
        else:
            with pytest.raises(OSError, match="disk"):
                score_task(spec, "1")


@pytest.mark.parametrize("name", sorted(INTEGRALS))
def test_antiderivatives_are_recognized(name):
    data = reasoning_gym.create_dataset(name, size=60, seed=1)
    for entry in data:
        own = entry["answer"]
        assert scorable(name, own, entry) == own
        if "Integral" in own:  # some problems have no closed form, and their own answer says so
            continue
        shifted = "7 - 3 + " + own.replace(" + C", "")
        assert scorable(name, shifted, entry) == own
        assert scorable(name, f"({own})*1.0001", entry) == NO_ANSWER
        assert scorable(name, f"Integral({entry['metadata']['integrand']}, x)", entry) == NO_ANSWER


def test_scorers_that_pay_for_nothing_are_held_back():
    spec, entry = problem("complex_arithmetic")
    assert [score_task(spec, text) for text in ("nan", "nan + nani", entry["answer"])] == [0, 0, 1]
    for index in range(4):
        spec, entry = problem("coin_flip", index, size=4)
        near = [entry["answer"][:1], entry["answer"][:3]]
        assert all(score_task(spec, text) < 1 or float(text) == float(entry["answer"]) for text in near)
        assert score_task(spec, entry["answer"]) == 1
        spec, entry = problem("game_of_life_halting", index, size=4)
        other = "False" if entry["answer"] == "True" else "True"
        assert [score_task(spec, text) for text in (other, "R", "?" * 30_000, entry["answer"])] == [0, 0, 0, 1]


def evaluates(dataset: type) -> bool:
    tree = ast.parse(textwrap.dedent(inspect.getsource(dataset.score_answer)))
    called = {ast.unparse(node.func).split(".")[-1] for node in ast.walk(tree) if isinstance(node, ast.Call)}
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
    numbers = [int(number) for number in rows["solution"][0].split()]
    assert task_reward([f"<answer>{numbers}</answer>"], task=rows["task"]) == [0.1]


@pytest.mark.parametrize("text", ["(12 + 7)*3 - 4/2", "x**3/3 - 2*x + C", "-2*x**(-1/2)", "6*x**2*y - 0.5", " 1 + 2 "])
def test_arithmetic_is_scored(text):
    assert scorable("countdown", text, ENTRY) == text


@pytest.mark.parametrize(
    "text",
    [
        "os.system", "(1).real", "sin(x)", "1e-9999", "S('1')", "foo(1)", "sin(x, 2)", "log(x=1)", "9**9**9",
        "(9**99)**99", "2**1000",
        "9**x", "5!", "'a'", "[1]", "1 if x else 2", "lambda: 1", "x # y", "1" * 2000, "(" * 400 + "1" + ")" * 400,
        "1e400", "10**20*99999999999999999", "xy", "",
    ],
)  # fmt: skip
def test_what_is_not_plain_arithmetic_is_not(text):
    assert scorable("countdown", text, ENTRY) == NO_ANSWER
    assert scorable("gsm_symbolic", text, ENTRY) == text  # compared as text


@pytest.mark.parametrize("text", ["[[1, 2], ['a', '-1']]", "_ Q _\nQ _ _", "ABC DEF"])
def test_lists_and_rows_are_scored(text):
    assert scorable("n_queens", text, ENTRY) == text


@pytest.mark.parametrize("text", ["open('x')", "a.b", "['a' * 9]", "[0 for a in 'xx' for b in 'xx']", "a: 1", "{1}"])
def test_what_is_more_than_a_list_is_not(text):
    assert scorable("n_queens", text, ENTRY) == NO_ANSWER
