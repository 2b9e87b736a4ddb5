"""Benchmarks from local files with the hub's columns: what is asked, what is right, what a completion votes for."""

import base64
import json
import pickle
import zlib

import pytest
from datasets import Dataset

from credit_trl import rewards
from credit_trl.data.loading import load_data
from credit_trl.data.public_datasets import BOXED_INSTRUCTION, CHOICE_INSTRUCTION, CODE_INSTRUCTION, YES_NO_INSTRUCTION
from credit_trl.evaluation import tasks
from credit_trl.evaluation.estimators import maj_at_k
from credit_trl.evaluation.scoring import score
from credit_trl.evaluation.tasks import BENCHMARKS, load_benchmark
from credit_trl.testbed import Problem

GPQA = {
    "Question": "Which of these is even?",
    "Correct Answer": "two",
    "Incorrect Answer 1": "one",
    "Incorrect Answer 2": "three",
    "Incorrect Answer 3": "five",
}
CSQA = {
    "question": "What flies?",
    "answerKey": "C",
    "choices": {"label": ["A", "B", "C"], "text": ["a stone", "a tree", "a bird"]},
}
MMLU_PRO = {"question": "2 + 2?", "options": ["1", "2", "3", "4", "5"], "answer": "D", "answer_index": 3}
LIVE_TESTS = [{"input": "3\n", "output": "6\n", "testtype": "stdin"}]
LIVE = {
    "question_content": "Print twice the number.",
    "starter_code": "",
    "public_test_cases": '[{"input": "1\\n", "output": "2\\n", "testtype": "stdin"}]',
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(LIVE_TESTS)))).decode(),
    "metadata": "{}",
}
# The rows of a benchmark, a right answer to the first of them and a wrong one.
CASES = {
    "math500": ([{"problem": "Half of one?", "answer": "\\frac{1}{2}"}], "\\boxed{0.5}", "\\boxed{2}"),
    "aime24": ([{"problem": "?", "answer": "033"}], "\\boxed{33}", "\\boxed{34}"),
    "aime25": ([{"problem": "?", "answer": "70"}], "\\boxed{70}", "\\boxed{7, 0}"),
    "amc23": ([{"question": "?", "answer": 27.0}], "\\boxed{27}", "\\boxed{28}"),
    "minerva": ([{"question": "?", "answer": "4.5e33"}], "\\boxed{4.5e33}", "\\boxed{4.5}"),
    "olympiadbench": ([{"question": "?", "final_answer": ["1", "-1"]}], "\\boxed{-1, 1}", "\\boxed{1}"),
    "hmmt25": ([{"problem": "?", "answer": "-\\frac{1}{21}"}], "\\boxed{-\\frac{1}{21}}", "\\boxed{\\frac{1}{21}}"),
    "gsm8k": ([{"question": "?", "answer": "We add.\n#### 1,234"}], "\\boxed{1234}", "\\boxed{234}"),
    "gpqa_diamond": ([GPQA], None, None),
    "csqa": ([CSQA], "It is \\boxed{C}", "\\boxed{B}"),
    "mmlu_pro": ([MMLU_PRO], "The answer is (D).", "The answer is (A)."),
    "arc_challenge": (
        [CSQA | {"answerKey": "3"} | {"choices": {"label": ["1", "2", "3"], "text": ["x", "y", "z"]}}],
        "\\boxed{(C)}",
        "\\boxed{A, C}",
    ),
    "strategyqa": ([{"question": "Do birds fly?", "answer": True}], "\\boxed{\\text{Yes}}", "\\boxed{no}"),
    "livecodebench": ([LIVE], None, None),
}


@pytest.fixture
def with_code(monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, "code", lambda completions, tests, **kwargs: [1.0] * len(completions))


def write(folder, name, rows, kind="jsonl"):
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    else:
        (folder / f"{name}.{kind}").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_benchmark_has_its_case():
    assert set(CASES) == set(BENCHMARKS)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1] is not None])
def test_right_and_wrong_answers(name, kind, tmp_path):
    rows, right, wrong = CASES[name]
    problems = load_benchmark(name, data_dir=write(tmp_path, name, rows, kind), conversational=False)
    assert problems[0]["prompt"].endswith("\n" + BENCHMARKS[name].instruction)
    row = problems[0]
    scores, votes = score(BENCHMARKS[name].scorer, [right, wrong, ""], [row] * 3)
    assert scores == [1.0, 0.0, 0.0]
    assert votes[0] is not None and votes[0] != votes[1] and votes[2] is None
    # As messages, the same.
    chat = load_benchmark(name, data_dir=tmp_path)[0]
    assert chat["prompt"] == [{"role": "user", "content": row["prompt"]}]
    messages = [[{"role": "assistant", "content": text}] for text in (right, wrong, "")]
    assert score(BENCHMARKS[name].scorer, messages, [chat] * 3) == (scores, votes)


def test_multiple_choice_prompts(tmp_path):
    write(tmp_path, "csqa", [CSQA])
    write(tmp_path, "mmlu_pro", [MMLU_PRO])
    csqa = load_benchmark("csqa", data_dir=tmp_path, conversational=False)[0]
    assert csqa == {
        "prompt": f"What flies?\n(A) a stone\n(B) a tree\n(C) a bird\n{CHOICE_INSTRUCTION}",
        "solution": "C",
    }
    mmlu = load_benchmark("mmlu_pro", data_dir=tmp_path, conversational=False)[0]
    assert mmlu == {"prompt": f"2 + 2?\n(A) 1\n(B) 2\n(C) 3\n(D) 4\n(E) 5\n{CHOICE_INSTRUCTION}", "solution": "D"}


def test_gpqa_shuffles_its_choices_and_finds_the_right_one(tmp_path):
    write(tmp_path, "gpqa_diamond", [GPQA] * 60)
    problems = load_benchmark("gpqa_diamond", data_dir=tmp_path, conversational=False)
    for row in problems:
        question, *choices, instruction = row["prompt"].split("\n")
        assert (question, instruction) == (GPQA["Question"], CHOICE_INSTRUCTION)
        assert sorted(choice[4:] for choice in choices) == ["five", "one", "three", "two"]
        assert f"({row['solution']}) two" in choices
    counts = [problems["solution"][:].count(letter) for letter in "ABCD"]
    assert min(counts) > 5, counts  # no letter is a safe bet
    part = load_benchmark("gpqa_diamond", data_dir=tmp_path, limit=10, conversational=False)
    assert set(part["prompt"]) <= set(problems["prompt"])


def test_limit_takes_a_part_that_the_seed_says(tmp_path):
    write(tmp_path, "math500", [{"problem": str(number), "answer": str(number)} for number in range(20)])

    def answers(seed):
        return load_benchmark("math500", data_dir=tmp_path, limit=5, seed=seed)["solution"][:]

    assert len(answers(0)) == 5
    assert answers(0) == answers(0) != answers(1)


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("\\$18.90", "\\boxed{18.90}", "\\boxed{1890}"),
        ("\\$18.90", "\\boxed{\\$18.90}", "\\boxed{\\$18}"),
        ("\\$ 1,250", "\\boxed{1250}", "\\boxed{1, 25}"),
        ("2\\sqrt{5}", "\\boxed{2\\sqrt{5}}", "\\boxed{2}"),
        ("(3,5)", "\\boxed{(3,5)}", "\\boxed{(5,3)}"),
        ("\\text{Evelyn}", "\\boxed{Evelyn}", "\\boxed{Eve}"),
        ("10\\%", "\\boxed{10\\%}", "\\boxed{11\\%}"),
    ],
)
def test_golds_of_math_are_read_as_in_training(gold, right, wrong, tmp_path):
    (row,) = load_benchmark("math500", data_dir=write(tmp_path, "math500", [{"problem": "?", "answer": gold}]))
    assert score("accuracy", [right, wrong], [row] * 2)[0] == [1.0, 0.0]
    assert rewards.accuracy_reward([right, wrong], solution=[gold] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "row", "right"),
    [
        ("csqa", CSQA | {"answerKey": "c"}, "\\boxed{C}"),
        ("csqa", CSQA | {"answerKey": "(C)"}, "\\boxed{C}"),
        ("mmlu_pro", MMLU_PRO | {"answer": "4"}, "\\boxed{D}"),
        ("strategyqa", {"question": "?", "answer": "Yes"}, "\\boxed{yes}"),
        ("strategyqa", {"question": "?", "answer": 0}, "\\boxed{no}"),
    ],
)
def test_choices_and_yes_no_in_other_forms(name, row, right, tmp_path):
    (problem,) = load_benchmark(name, data_dir=write(tmp_path, name, [row]))
    assert score(BENCHMARKS[name].scorer, [right, "\\boxed{?}"], [problem] * 2)[0] == [1.0, 0.0]


def test_equal_mathematical_answers_are_one_vote():
    texts = ["\\boxed{\\frac{1}{2}}", "\\boxed{1/2}", "\\boxed{7}", "\\boxed{\\frac{2}{4}}", "I do not know."]
    scores, votes = score("accuracy", texts, [{"prompt": "?", "solution": "$7$"}] * 5)
    assert scores == [0, 0, 1, 0, 0]
    assert votes[0] == votes[1] == votes[3] != votes[2]
    assert votes[4] is None
    assert maj_at_k(votes[:4], [value == 1 for value in scores[:4]], 4) == 0.0
    # Text that is no mathematics votes as it stands, and a tuple is not taken apart.
    _, votes = score(
        "accuracy",
        ["\\boxed{\\text{red}}", "\\boxed{(1, 2)}", "\\boxed{(1, 3)}"],
        [{"prompt": "", "solution": "1"}] * 3,
    )
    assert len(set(votes)) == 3


def test_testbed_and_reasoning_gym_are_the_held_out_problems():
    testbed = load_benchmark("testbed", limit=3, dataset_kwargs={"max_steps": 4})
    assert testbed[:] == load_data("testbed", split="test", size=3, dataset_kwargs={"max_steps": 4})[:]
    problem = Problem.parse(testbed[0]["prompt"])
    right = problem.solution()
    assert score("testbed", [right, right + "x"], [testbed[0]] * 2) == (
        [1, 0],
        [f"#{problem.answer}", f"#{problem.answer}x"],
    )

    name = "reasoning-gym/chain_sum"
    tasks = load_benchmark(name, limit=2, seed=5, dataset_kwargs={"max_terms": 3})
    assert tasks[:] == load_data(name, split="test", size=2, seed=5, dataset_kwargs={"max_terms": 3})[:]
    answer = tasks[1]["solution"]
    assert score("task", [f"So \\boxed{{{answer}}}.", "none"], [tasks[1]] * 2) == ([1, 0], [answer, "none"])


def test_livecodebench_brings_public_and_private_tests(with_code, tmp_path):
    function = LIVE | {
        "starter_code": "class Solution:\n    def twice(self, n):",
        "metadata": '{"func_name": "twice"}',
        "private_test_cases": json.dumps(LIVE_TESTS),  # some rows have plain JSON
    }
    write(tmp_path, "livecodebench", [LIVE, function])
    first, second = load_benchmark("livecodebench", data_dir=tmp_path, conversational=False)
    assert first["prompt"] == f"Print twice the number.\n{CODE_INSTRUCTION}"
    assert json.loads(first["tests"]) == [
        {"input": "1\n", "output": "2\n", "testtype": "stdin"},
        {"input": "3\n", "output": "6\n", "testtype": "stdin"},
    ]
    assert second["prompt"].endswith("```python\nclass Solution:\n    def twice(self, n):\n```")
    assert [test["fn_name"] for test in json.loads(second["tests"])] == ["twice"] * 2
    assert score("code", ["```python\n```"], [first]) == ([1.0], None)


def test_packed_tests_cannot_run_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    packed = base64.b64encode(zlib.compress(pickle.dumps(Harmful()))).decode()
    write(tmp_path, "livecodebench", [LIVE | {"private_test_cases": packed}])
    with pytest.raises(ValueError, match=r"hold \d texts, where one was expected"):
        load_benchmark("livecodebench", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("math500", [{"question": "?", "answer": "1"}], "no column problem. It has question, answer"),
        ("math500", [{"problem": "?"}], "no column answer. It has problem"),
        (
            "math500",
            [{"problem": "?", "answer": text} for text in ("1", "", "N/A")],
            "2 of 3 golds in the column `answer`",
        ),
        ("strategyqa", [{"question": "?", "answer": "maybe"}], "the reward yes_no .row 0: 'maybe'"),
        (
            "gpqa_diamond",
            [{"Question": "?", "Correct Answer": "1"}],
            "no column Incorrect Answer 1, Incorrect Answer 2",
        ),
        (
            "csqa",
            [CSQA | {"answerKey": "D"}],
            "1 of 1 golds in the column `answerKey` cannot be read for the reward choice .row 0: 'D'",
        ),
    ],
)
def test_files_of_another_kind(name, rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_benchmark(name, data_dir=write(tmp_path, name, rows))


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"no benchmark 'math50'\. Did you mean math500\? There are math500, aime24"):
        load_benchmark("math50")
    with pytest.raises(ValueError, match=r"no math500 in .*one of math500.jsonl, math500.json, math500.parquet"):
        load_benchmark("math500", data_dir=tmp_path)
    with pytest.raises(ValueError, match="no task 'chain_sums'"):
        load_benchmark("reasoning-gym/chain_sums")


def test_the_hub_is_asked_for_the_benchmarks_own_place(monkeypatch):
    asked = []

    def read(name, split, config, options):
        asked.append((name, config, split))
        return Dataset.from_list([{"question": "?", "answer": "#### 3"}])

    monkeypatch.setattr(tasks, "read_rows", read)
    (row,) = load_benchmark("gsm8k", conversational=False)
    assert asked == [("openai/gsm8k", "main", "test")]
    assert row == {"prompt": f"?\n{BOXED_INSTRUCTION}", "solution": "3"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("\\boxed{B}", "B"),
        ("\\boxed{(B)}", "B"),
        ("\\boxed{\\text{(B) a tree}}", "B"),
        ("\\boxed{B. a tree}", "B"),
        ("first \\boxed{A}, no: \\boxed{B}", "B"),
        ("<answer> B </answer> and \\boxed{A}", "B"),
        ("**Answer:** (B)", "B"),
        ("The answer is A.\nNo, the correct answer is: **B**", "B"),
        ("Answer: $\\boxed{B}$", "B"),
        ("The answer is I don't know", None),
        ("The answer is A tree", None),
        ("\\boxed{Both}", None),
        ("\\boxed{}", None),
        ("I like B", None),
        ("", None),
    ],
)
def test_the_chosen_letter(text, letter):
    assert rewards.extract_choice(text) == letter
    assert rewards.choice_reward([text] * 2, ["B", "C"]) == [float(letter == "B"), 0.0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{yes}", "yes"),
        ("\\boxed{\\text{No}}", "no"),
        ("The answer is: True", "yes"),
        ("So the answer is **no**.", "no"),
        ("\\boxed{yes} or rather \\boxed{no}", "no"),
        ("Yes, of course", None),
        ("\\boxed{nothing}", None),
    ],
)
def test_yes_and_no(text, answer):
    assert rewards.extract_yes_no(text) == answer
    assert rewards.yes_no_reward([text, text], ["yes", "no"]) == [float(answer == "yes"), float(answer == "no")]


def test_yes_no_prompt(tmp_path):
    write(tmp_path, "strategyqa", [{"question": "Do birds fly?", "answer": flag} for flag in (True, False)])
    problems = load_benchmark("strategyqa", data_dir=tmp_path, conversational=False)
    assert problems["solution"][:] == ["yes", "no"]
    assert problems[0]["prompt"] == f"Do birds fly?\n{YES_NO_INSTRUCTION}"
