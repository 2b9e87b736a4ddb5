"""Known data sets: rows of our own in exactly their columns, and answers in several styles through their reward."""

import base64
import json
import pickle
import re
import zlib
from pathlib import Path

import pytest
from datasets import Dataset

from credit_trl.data import loading
from credit_trl.data.loading import default_reward, load_data
from credit_trl.data.public_datasets import BOXED_INSTRUCTION, DATASETS, known_dataset
from credit_trl.rewards.registry import REWARDS, check_columns
from credit_trl.rewards.sandbox import check_sandbox

try:
    check_sandbox()
    runs_code = True
except ValueError:
    runs_code = False


def verl(prompt, gold, **extra):
    return {"data_source": "own", "prompt": [{"content": prompt, "role": "user"}], "ability": "MATH",
            "reward_model": {"ground_truth": gold, "style": "rule"}, "extra_info": {"index": "1"} | extra}  # fmt: skip


MESSAGES = [{"content": "Half of three?", "role": "user"}, {"content": "It is 1.5.", "role": "assistant"}]
NUMINA = {"source": "own", "problem": "Half of three?", "messages": MESSAGES}
HALF = (
    ["\\boxed{\\frac{3}{2}}", "The answer is $1.5$.", "<answer>3/2</answer>"],
    ["\\boxed{3}", "1.5 or so", "\\boxed{\\frac{2}{3}}"],
)
PRIVATE = [{"input": "3\n", "output": "6\n", "testtype": "stdin"}]
LIVE = {
    "question_title": "Twice", "question_content": "Print twice the number.", "platform": "own", "question_id": "1",
    "contest_id": "1", "contest_date": "2024-01-01", "starter_code": "", "difficulty": "easy",
    "public_test_cases": '[{"input": "1\\n", "output": "2\\n", "testtype": "stdin"}]',
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(PRIVATE)))).decode(), "metadata": "{}",
}  # fmt: skip
TWICE = ["```python\nprint(2 * int(input()))\n```", "``` Python\nn = int(input())\nprint(n + n)\n```",
         "<answer>```py\nimport sys\nprint(2 * int(sys.stdin.read()))\n```</answer>"], [
         "```python\nprint(int(input()))\n```", "print(2 * int(input()))",
         "```python\nprint(2 * int(input())"]  # fmt: skip
DOUBLE = ["```python\ndef double(n):\n    return 2 * n\n```", "```py\ndouble = lambda n: n + n\n```",
          "1. So:\n   ```python3\n   def double(n: int) -> int:\n       return n << 1\n   ```"], [
          "```python\ndef double(n):\n    return n\n```", "def double(n): return 2 * n",
          "```python\ndef twice(n):\n    return 2 * n\n```"]  # fmt: skip
CHOICE_B = (
    ["\\boxed{B}", "The answer is (B).", "<answer>B) a bird</answer>"],
    ["\\boxed{A}", "\\boxed{A, B}", "B is wrong"],
)
MATH_SET = {"problem": "Half of three?", "level": "Level 1", "type": "Algebra"}
ARC_LABELS = {"text": ["a stone", "a bird", "a tree"], "label": ["1", "2", "3"]}
LETTERS = {"text": ["a stone", "a bird", "a tree"], "label": ["A", "B", "C"]}
PYTEST = """from solution import double

def test_two():
    assert double(2) == 4

def test_none():
    assert double(0) == 0
"""

# name -> a row with the data set's own columns, what is read of the gold, right and wrong answers.
CASES = {
    "zwhe99/DeepMath-103K": (
        {
            "question": "Half of three?",
            "final_answer": "\\dfrac{3}{2}",
            "difficulty": 5.0,
            "topic": "Own",
            "r1_solution_1": "x",
            "r1_solution_2": "y",
            "r1_solution_3": "z",
        },
        "\\dfrac{3}{2}",
        *HALF,
    ),
    "openai/gsm8k": (
        {"question": "Money?", "answer": "It is 1200 + 34 = <<1200+34=1234>>1234.\n#### 1,234"},
        "1,234",
        ["\\boxed{1234}", "The answer is 1,234.", "#### 1234"],
        ["\\boxed{234}", "\\boxed{1.234}", "1234 and then 5"],
    ),
    "EleutherAI/hendrycks_math": (MATH_SET | {"solution": "Thus $\\boxed{\\frac{3}{2}}$."}, "\\frac{3}{2}", *HALF),
    "HuggingFaceH4/MATH-500": (
        {
            "problem": "What does it cost?",
            "solution": "Thus \\boxed{\\$18.90}.",
            "answer": "\\$18.90",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/1.json",
        },
        "18.90",
        ["\\boxed{\\$18.90}", "\\boxed{18.90}", "The answer is $\\$18.9$."],
        ["\\boxed{18}", "\\boxed{1890}", "\\boxed{}"],
    ),
    "AI-MO/NuminaMath-CoT": (NUMINA | {"solution": "We halve: $\\boxed{1.5}$"}, "1.5", *HALF),
    "AI-MO/NuminaMath-TIR": (
        {
            "problem": "Half of three?",
            "messages": MESSAGES,
            "solution": "```python\nprint(3 / 2)\n```\n```output\n1.5\n```\nSo it is $\\boxed{1.5}$.",
        },
        "1.5",
        *HALF,
    ),
    "AI-MO/NuminaMath-1.5": (
        {
            "problem": "Half of three?",
            "solution": "We halve.",
            "answer": "\\frac{3}{2}",
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "problem_is_valid": "Yes",
            "solution_is_valid": "Yes",
            "source": "own",
            "synthetic": False,
        },
        "\\frac{3}{2}",
        *HALF,
    ),
    "open-r1/OpenR1-Math-220k": (
        {
            "problem": "Half of three?",
            "solution": "We halve.",
            "answer": "1.5",
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "source": "own",
            "uuid": "1",
            "is_reasoning_complete": [True],
            "generations": ["x"],
            "correctness_math_verify": [True],
            "correctness_llama": None,
            "finish_reasons": None,
            "correctness_count": 1,
            "messages": MESSAGES,
        },
        "1.5",
        *HALF,
    ),
    "BytedTsinghua-SIA/DAPO-Math-17k": (
        verl("End with Answer: $Answer.\n\nTwo dozen and ten?", "34"),
        "34",
        ["So it is.\nAnswer: 34", "Answer: $34$", "\\boxed{34}"],
        ["Answer: 35", "Answer: 3, 4", "Answer: $Answer"],
    ),
    "open-r1/DAPO-Math-17k-Processed": (
        verl("Two dozen and ten?", "34")
        | {"prompt": "Two dozen and ten?", "solution": "34", "source_prompt": MESSAGES[:1]},
        "34",
        ["Answer: 34", "\\boxed{34}", "<answer>34</answer>"],
        ["Answer: 35", "\\boxed{-34}", "\\boxed{3, 4}"],
    ),
    "SynthLabsAI/Big-Math-RL-Verified": (
        {
            "problem": "When do we meet?",
            "answer": "x = 2\\sqrt{5}",
            "source": "own",
            "domain": ["Mathematics -> Algebra"],
            "llama8b_solve_rate": 0.5,
        },
        "x = 2\\sqrt{5}",
        ["\\boxed{2\\sqrt{5}}", "\\boxed{x=2\\sqrt{5}}", "The answer is $\\sqrt{20}$."],
        ["\\boxed{2}", "\\boxed{5}", "\\boxed{\\sqrt{10}}"],
    ),
    "Skywork/Skywork-OR1-RL-Data": (
        verl("Half of three?", '["\\\\frac{3}{2}"]')
        | {"extra_info": {"index": 1, "model_difficulty": {"DeepSeek-R1-Distill-Qwen-7B": 1}}},
        "\\frac{3}{2}",
        *HALF,
    ),
    "HuggingFaceH4/aime_2024": (
        {"id": 1, "problem": "?", "solution": "It is \\boxed{033}.", "answer": "033", "url": "u", "year": "2024"},
        "033",
        ["\\boxed{33}", "\\boxed{033}", "The answer is 33."],
        ["\\boxed{34}", "\\boxed{3.3}", "33 or 34: \\boxed{33, 34}"],
    ),
    "Maxwell-Jia/AIME_2024": (
        {"ID": "2024-I-1", "Problem": "?", "Solution": "x", "Answer": 204},
        "204",
        ["\\boxed{204}", "The answer is 204", "<answer>204</answer>"],
        ["\\boxed{205}", "\\boxed{20, 4}", ""],
    ),
    "math-ai/aime25": (
        {"problem": "?", "answer": "70", "id": "0"},
        "70",
        ["\\boxed{70}", "The answer is $70$.", "<answer>\\boxed{70}</answer>"],
        ["\\boxed{7}", "\\boxed{-70}", "\\boxed{70, 71}"],
    ),
    "math-ai/amc23": (
        {"id": 0, "answer": 27.0, "question": "?", "url": "u"},
        "27",
        ["\\boxed{27}", "\\boxed{27.0}", "The answer is 27."],
        ["\\boxed{28}", "\\boxed{2.7}", "\\boxed{2, 7}"],
    ),
    "math-ai/minervamath": (
        {"question": "How many?", "answer": "4.5e33"},
        None,
        ["\\boxed{4.5e33}", "\\boxed{4.5 \\times 10^{33}}", "The answer is $4.5 \\cdot 10^{33}$."],
        ["\\boxed{4.5}", "\\boxed{4.5e32}", "\\boxed{33}"],
    ),
    "Hothan/OlympiadBench": (
        {
            "id": 1,
            "question": "Which?",
            "solution": ["x"],
            "final_answer": ["1", "-1"],
            "context": None,
            "image_1": None,
            "modality": "Text-only",
            "difficulty": "Competition",
            "is_multiple_answer": True,
            "unit": None,
            "answer_type": "Numerical",
            "error": None,
            "question_type": "Open-ended",
            "subfield": "Algebra",
            "subject": "Math",
            "language": "English",
        },
        "1, -1",
        ["\\boxed{-1, 1}", "\\boxed{1,-1}", "\\boxed{\\pm 1}"],
        ["\\boxed{1}", "\\boxed{1, 2}", "\\boxed{-1}"],
    ),
    "MathArena/hmmt_feb_2025": (
        {"problem_idx": 1, "problem": "?", "answer": "-\\frac{1}{21}", "problem_type": ["Algebra"]},
        "-\\frac{1}{21}",
        ["\\boxed{-\\frac{1}{21}}", "\\boxed{\\frac{-1}{21}}", "\\boxed{-1/21}"],
        ["\\boxed{\\frac{1}{21}}", "\\boxed{-21}", "\\boxed{21}"],
    ),
    "TIGER-Lab/MMLU-Pro": (
        {
            "question_id": 1,
            "question": "What flies?",
            "options": LETTERS["text"],
            "answer": "B",
            "answer_index": 1,
            "cot_content": "",
            "category": "biology",
            "src": "own",
        },
        "B",
        *CHOICE_B,
    ),
    "Idavidrein/gpqa": (
        {
            "Question": "What flies?",
            "Correct Answer": "a bird\n",
            "Incorrect Answer 1": "a stone",
            "Incorrect Answer 2": "a tree",
            "Incorrect Answer 3": "a rope",
            "Subdomain": "own",
        },
        None,
        None,
        None,
    ),
    "allenai/ai2_arc": (
        {"id": "own_1", "question": "What flies?", "choices": ARC_LABELS, "answerKey": "2"},
        "B",
        *CHOICE_B,
    ),
    "tau/commonsense_qa": (
        {"id": "1", "question": "What flies?", "question_concept": "fly", "choices": LETTERS, "answerKey": "B"},
        "B",
        *CHOICE_B,
    ),
    "ChilleD/StrategyQA": (
        {
            "qid": "1",
            "term": "Bird",
            "description": "own",
            "question": "Do birds fly?",
            "answer": True,
            "facts": "They do.",
        },
        "yes",
        ["\\boxed{yes}", "The answer is Yes.", "<answer>True</answer>"],
        ["\\boxed{no}", "\\boxed{yes or no}", "Answer: false"],
    ),
    "lighteval/code_generation_lite": (LIVE, None, *TWICE),
    "codeparrot/apps": (
        {
            "problem_id": 1,
            "question": "Print twice the number.",
            "solutions": "[]",
            "difficulty": "introductory",
            "input_output": json.dumps({"inputs": ["1\n", "3\n"], "outputs": ["2\n", "6\n"]}),
            "url": "u",
            "starter_code": "",
        },
        None,
        *TWICE,
    ),
    "BAAI/TACO": (
        {
            "question": "Double the number.",
            "solutions": "[]",
            "starter_code": "def double(n):\n\t",
            "difficulty": "EASY",
            "input_output": json.dumps({"fn_name": "double", "inputs": [[2], [3]], "outputs": [4, [6]]}),
            "raw_tags": "[]",
            "name": None,
            "source": "own",
            "tags": "[]",
            "skill_types": "[]",
            "url": None,
            "Expected Auxiliary Space": None,
            "time_limit": None,
            "date": None,
            "picture_num": None,
            "memory_limit": None,
            "Expected Time Complexity": None,
        },
        None,
        *DOUBLE,
    ),
    "KodCode/KodCode-V1": (
        {
            "version": "v1.0",
            "style": "instruct",
            "subset": "Own",
            "question_id": "1",
            "question": "Write `double`.",
            "solution": "def double(n): return 2 * n",
            "test": PYTEST,
            "test_info": [
                {
                    "docstring": "",
                    "function_declaration": "def double(n):",
                    "function_name": "double",
                    "parameter_list": "(n)",
                }
            ],
            "gpt_pass_percentage": 1.0,
        },
        None,
        *DOUBLE,
    ),
    "Jiayi-Pan/Countdown-Tasks-3to4": (
        {"target": 24, "nums": [8, 3, 1]},
        None,
        ["<answer>8 * 3 * 1</answer>", "\\boxed{8 \\times 3 \\div 1}", "The answer is (8 * 3) / 1 = 24"],
        ["<answer>8 * 3</answer>", "\\boxed{24}", "\\boxed{8 * 3 * 1 * 1}"],
    ),
}


@pytest.fixture
def hub(monkeypatch):
    """A hub that has the rows that a test gives it, and notes what it is asked for."""

    class Hub:
        rows: list[dict] = []
        asked: tuple = ()

    def load(name, config=None, split=None, **options):
        Hub.asked = (name, config, split)
        return Dataset.from_list(Hub.rows)

    monkeypatch.setattr(loading, "load_dataset", load)
    return Hub


def test_every_known_data_set_has_its_case():
    assert set(CASES) == {known.name for known in DATASETS}
    assert len(CASES) >= 18
    assert all(known.gold and known.source for known in DATASETS)


@pytest.mark.parametrize("name", CASES)
def test_right_and_wrong_answers_of(name, hub):
    row, gold, right, wrong = CASES[name]
    known = known_dataset(name)
    if known.reward == "code" and not runs_code:
        pytest.skip("no sandbox here")
    hub.rows = [row]
    data = load_data(name.upper(), split="train" if known.train else "test")
    own_split = known.train or known.test
    assert hub.asked == (name.upper(), known.config, own_split)
    reward = REWARDS[known.reward]
    check_columns([reward], data.column_names)
    (problem,) = data
    if gold is not None:
        assert problem["solution"] == gold
    if right is None:  # its choices are shuffled
        letter = problem["solution"]
        assert f"({letter}) a bird\n" in problem["prompt"][0]["content"]
        other = "ABCD"[("ABCD".index(letter) + 1) % 4]
        right = [f"\\boxed{{{letter}}}", f"The answer is ({letter}).", f"<answer>{letter}</answer>"]
        wrong = [f"\\boxed{{{other}}}", f"\\boxed{{{letter} or {other}}}", ""]
    assert len(right) == len(wrong) == 3
    columns = {column: [problem[column]] * 6 for column in data.column_names if column != "prompt"}
    assert list(reward(completions=right + wrong, **columns)) == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("name", CASES)
def test_the_prompt_asks_in_the_rewards_style(name, hub):
    hub.rows = [CASES[name][0]]
    known = known_dataset(name)
    split = "train" if known.train else "test"
    text = load_data(name, split=split, conversational=False)[0]["prompt"]
    bare = load_data(name, split=split, conversational=False, instruction="")[0]["prompt"]
    if isinstance(text, list):  # messages, whose author has said all there is to say
        assert text == bare == CASES[name][0]["prompt"]
        return
    assert text.startswith(bare + "\n")
    words = {
        "accuracy": "\\boxed{}",
        "choice": "letter",
        "yes_no": "yes or no",
        "code": "```python",
        "countdown": "\\boxed{}",
    }
    assert words[known.reward] in text.removeprefix(bare)
    own = load_data(name, split=split, conversational=False, instruction="Say it.")[0]["prompt"]
    assert own.startswith(bare) and "\\boxed" not in own.removeprefix(bare)


def test_rows_without_a_gold_by_design_are_left_out_with_a_warning(hub):
    row = CASES["AI-MO/NuminaMath-1.5"][0]
    hub.rows = [row, row | {"answer": "proof"}, row | {"answer": "notfound"}, row | {"answer": ""}, row]
    with pytest.warns(
        UserWarning, match=r"3 of 5 golds in the column `answer` cannot .*row 1: 'proof'; row 2: 'notfound'"
    ):
        data = load_data("AI-MO/NuminaMath-1.5")
    assert len(data) == 2
    hub.rows = hub.rows[1:4]
    with pytest.raises(ValueError, match="3 of 3 golds"):
        load_data("AI-MO/NuminaMath-1.5")


def test_programs_without_tests_are_left_out_with_a_warning(hub):
    row = CASES["codeparrot/apps"][0]
    golds = ["", "{}", '{"inputs": ["1"], "outputs": []}', "{", '{"inputs": [[' + "1" * 5000 + ']], "outputs": [1]}']
    hub.rows = [row, *(row | {"input_output": gold} for gold in golds)]
    with pytest.warns(
        UserWarning, match="5 of 6 golds in the column `input_output` cannot be read for the reward code"
    ):
        assert len(load_data("codeparrot/apps")) == 1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "zwhe99/DeepMath-103K",
            {"final_answer": ""},
            "1 of 2 golds in the column `final_answer` .* accuracy .row 1: ''",
        ),
        ("openai/gsm8k", {"answer": None}, "`answer` cannot be read for the reward accuracy .row 1: None"),
        ("tau/commonsense_qa", {"answerKey": ""}, "`answerKey` cannot be read for the reward choice"),
        ("TIGER-Lab/MMLU-Pro", {"answer": "J"}, "the reward choice .row 1: 'J'"),
        ("ChilleD/StrategyQA", {"answer": None}, "the reward yes_no .row 1: None"),
        ("KodCode/KodCode-V1", {"test": ""}, "the reward code .row 1: ''"),
    ],
)
def test_golds_that_cannot_be_read_are_reported(name, change, message, hub):
    row = CASES[name][0]
    hub.rows = [row, row | change]
    known = known_dataset(name)
    with pytest.raises(ValueError, match=message):
        load_data(name, split="train" if known.train else "test")


def test_splits_that_are_not_there_say_what_is(hub):
    hub.rows = [CASES["openai/gsm8k"][0]]
    assert load_data("openai/gsm8k", split="test[:10]") and hub.asked[2] == "test[:10]"
    hub.rows = [CASES["tau/commonsense_qa"][0]]
    assert load_data("tau/commonsense_qa", split="test") and hub.asked[2] == "validation"
    hub.rows = [CASES["Skywork/Skywork-OR1-RL-Data"][0]]
    assert load_data("Skywork/Skywork-OR1-RL-Data", split="train[:5%]") and hub.asked[2] == "math[:5%]"
    with pytest.raises(ValueError, match=r"no split for 'test': take 'math\[-500:\]'"):
        load_data("Skywork/Skywork-OR1-RL-Data", split="test")
    with pytest.raises(ValueError, match=r"no split for 'train': take 'test'"):
        load_data("HuggingFaceH4/MATH-500")


def test_the_users_columns_go_first(hub):
    hub.rows = [CASES["openai/gsm8k"][0] | {"hint": "7"}]
    data = load_data("openai/gsm8k", prompt_column="question", answer_column="hint", config="socratic")
    assert (data[0]["solution"], hub.asked[1]) == ("7", "socratic")
    assert data[0]["prompt"][0]["content"] == f"Money?\n{BOXED_INSTRUCTION}"
    hub.rows = [{"question": "?"}]
    with pytest.raises(ValueError, match=r"has no column answer\. It has question"):
        load_data("openai/gsm8k")


def test_the_reward_that_fits_is_known():
    assert default_reward("TIGER-Lab/MMLU-Pro") == "choice" and default_reward("chilled/strategyqa") == "yes_no"
    assert default_reward("testbed") == "testbed" and default_reward("reasoning-gym/chain_sum") == "task"
    assert default_reward("somebody/else") == default_reward("OpenAI/GSM8K") == "accuracy"


def test_a_local_copy_is_read_as_a_file(tmp_path, monkeypatch):
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    (tmp_path / "openai" / "gsm8k" / "train.jsonl").write_text(json.dumps(CASES["openai/gsm8k"][0]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no column 'prompt'\. It has question, answer"):
        load_data("openai/gsm8k")
    assert load_data("openai/gsm8k", prompt_column="question", answer_column="answer").num_rows == 1


def test_the_guide_lists_every_known_data_set_as_it_is():
    guide = (Path(__file__).parents[2] / "docs/guides/evaluation.md").read_text(encoding="utf-8")
    for known in DATASETS:
        (line,) = [line for line in guide.splitlines() if re.match(rf"\| {re.escape(known.name)}[ ,]", line)]
        facts = [known.question, known.answer, known.gold, known.config, known.train, known.test, known.reward]
        facts += [known.license or "not seen", known.source]
        assert all(fact is None or fact in line for fact in facts), line
