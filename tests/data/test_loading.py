"""Data sets: the columns that TRL needs, and one clear line for everything that can be named wrongly."""

import json

import pytest
from datasets import Dataset

from credit_trl.data.loading import BOXED_INSTRUCTION, load_data
from credit_trl.data.reasoning_gym import score_task

ROWS = [{"problem": f"What is {n} + {n}?", "result": str(2 * n), "level": n} for n in range(1, 7)]


@pytest.fixture(params=["jsonl", "json", "parquet"])
def problems_file(request, tmp_path):
    path = tmp_path / f"problems.{request.param}"
    if request.param == "parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif request.param == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        path.write_text(json.dumps(ROWS))
    return str(path)


def test_local_files_get_trls_columns(problems_file):
    data = load_data(problems_file, prompt_column="problem", answer_column="result")
    assert sorted(data.column_names) == ["level", "prompt", "solution"]
    assert data[2] == {
        "prompt": [{"role": "user", "content": f"What is 3 + 3?\n{BOXED_INSTRUCTION}"}],
        "solution": "6",
        "level": 3,
    }


def test_plain_prompts_without_instruction_stay_as_they_are(problems_file):
    data = load_data(problems_file, prompt_column="problem", instruction="", conversational=False)
    assert data["prompt"][:2] == ["What is 1 + 1?", "What is 2 + 2?"]
    assert "result" in data.column_names


def test_messages_stay_as_they_are(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"prompt": messages, "solution": "2"}))
    assert load_data(str(path))[0] == {"prompt": messages, "solution": "2"}


def test_the_named_answer_replaces_another_solution(tmp_path):
    path = tmp_path / "both.jsonl"
    path.write_text(json.dumps({"prompt": "1 + 1?", "solution": "We add.", "answer": "2"}))
    assert load_data(str(path), answer_column="answer")["solution"][0] == "2"


def test_a_field_of_a_mapping_can_be_the_answer(tmp_path):
    path = tmp_path / "nested.jsonl"
    messages = [{"role": "user", "content": "1 + 1?"}]
    path.write_text(json.dumps({"prompt": messages, "reward_model": {"ground_truth": "2", "style": "rule"}}))
    data = load_data(str(path), answer_column="reward_model.ground_truth", reward="accuracy")
    assert (data["prompt"][0], data["solution"][0]) == (messages, "2")
    with pytest.raises(ValueError, match=r"holds mappings.*: reward_model\.ground_truth, reward_model\.style"):
        load_data(str(path), answer_column="reward_model", reward="accuracy")


def test_size_takes_a_random_part_that_the_seed_says(problems_file):
    def levels(seed):
        return load_data(problems_file, prompt_column="problem", size=4, seed=seed)["level"][:]

    assert len(levels(0)) == 4
    assert levels(0) == levels(0)
    assert levels(0) != levels(1)
    assert load_data(problems_file, prompt_column="problem", size=100).num_rows == 6


def test_slices_hold_out_a_part_of_a_single_file(problems_file):
    train = load_data(problems_file, prompt_column="problem", split="train[:4]")
    test = load_data(problems_file, prompt_column="problem", split="train[4:]")
    assert train["level"][:] == [1, 2, 3, 4]
    assert test["level"][:] == [5, 6]


def test_reasoning_gym_rows_find_their_problem_again():
    import reasoning_gym

    options = {"max_terms": 3, "max_digits": 2}
    data = load_data("reasoning-gym/chain_sum", size=5, seed=7, instruction=None, dataset_kwargs=options)
    expected = reasoning_gym.create_dataset("chain_sum", size=5, seed=7, **options)
    assert [row["prompt"][0]["content"] for row in data] == [entry["question"] for entry in expected]
    assert data["solution"][:] == [entry["answer"] for entry in expected]
    assert [score_task(row["task"], row["solution"]) for row in data] == [1.0] * 5
    assert score_task(data[0]["task"], str(int(data[0]["solution"]) + 1)) == 0.0


def test_reasoning_gym_scorers_get_what_json_cannot_carry():
    data = load_data("reasoning-gym/time_intervals", size=3)  # its metadata hold datetime objects
    assert [score_task(row["task"], row["solution"]) for row in data] == [1.0] * 3


@pytest.mark.parametrize("name", ["reasoning-gym/chain_sum", "testbed"])
def test_generated_test_problems_are_others(name):
    options = {"min_terms": 5} if name != "testbed" else {}
    train, again, test = (load_data(name, split=split, size=200, dataset_kwargs=options) for split in
                          ("train", "train", "test"))  # fmt: skip
    assert train["prompt"][:] == again["prompt"][:]
    assert not {str(prompt) for prompt in train["prompt"]} & {str(prompt) for prompt in test["prompt"]}


def test_testbed_problems_are_plain_text_with_their_answer():
    data = load_data("testbed", size=3, dataset_kwargs={"min_steps": 2, "max_steps": 2})
    assert data.column_names == ["prompt", "answer"]
    assert all(prompt.endswith(":") and sum(prompt.count(sign) for sign in "+-*") == 2 for prompt in data["prompt"])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("reasoning-gym/chain_sums", {}, "no task 'chain_sums'. Closest of its 1.*chain_sum"),
        ("reasoning-gym/chain_sum", {"dataset_kwargs": {"terms": 3}}, "no option terms. It has min_terms, max_terms"),
        ("reasoning-gym/chain_sum", {"dataset_kwargs": {"min_terms": 9}}, "rejects its options.*max_terms must be >="),
        ("reasoning-gym/chain_sum", {"split": "validation"}, "has the splits train and test, got 'validation'"),
        ("testbed", {"dataset_kwargs": {"steps": 3}}, "the testbed rejects its options.*'steps'"),
        ("testbed", {"dataset_kwargs": {"max_steps": 99}}, "max_steps <= 16"),
        ("nowhere/problems.jsonl", {}, "there is no file nowhere/problems.jsonl"),
        ("./nowhere", {}, "there is no file or folder ./nowhere"),
    ],
)
def test_wrong_names_and_options(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_data(name, **arguments)


def test_wrong_columns_list_those_that_exist(problems_file):
    with pytest.raises(ValueError, match=r"no column 'prompt'. It has problem, result, level: choose"):
        load_data(problems_file)
    with pytest.raises(ValueError, match=r"no column 'answer'. It has prompt, result, level"):
        load_data(problems_file, prompt_column="problem", answer_column="answer")


def test_files_of_another_kind_or_content(tmp_path):
    (tmp_path / "problems.txt").write_text("1 + 1")
    with pytest.raises(ValueError, match=r"expected one of .jsonl, .json, .parquet"):
        load_data(str(tmp_path / "problems.txt"))
    (tmp_path / "broken.jsonl").write_text('{"prompt": "1 + 1"\n{')
    with pytest.raises(ValueError, match=r"cannot read .*broken.jsonl"):
        load_data(str(tmp_path / "broken.jsonl"))


@pytest.mark.parametrize(
    ("reward", "golds", "message"),
    [
        (
            None,
            ["1", "", None],
            r"2 of 3 golds in the column `result` cannot be read for any reward .row 1: ''; row 2: None",
        ),
        ("accuracy", ["1", "N/A", "???"], r"2 of 3 golds .* the reward accuracy .row 1: 'N/A'; row 2: '\?\?\?'"),
        ("choice", ["A", "B", "Paris"], "1 of 3 golds .* the reward choice .row 2: 'Paris'"),
        ("choice", [0, 1, -1], "the reward choice .row 2: -1"),
        ("yes_no", ["yes", "no", "maybe"], "the reward yes_no .row 2: 'maybe'"),
        ("yes_no", [True, False, None], "the reward yes_no .row 2: None"),
    ],
)
def test_golds_that_cannot_be_read_are_reported_by_row_and_column(reward, golds, message, tmp_path):
    path = tmp_path / "golds.jsonl"
    path.write_text("".join(json.dumps({"problem": "?", "result": gold}) + "\n" for gold in golds))
    with pytest.raises(ValueError, match=message):
        load_data(str(path), prompt_column="problem", answer_column="result", reward=reward)
    rest = load_data(str(path), prompt_column="problem", answer_column="result", reward=reward, split="train[:1]")
    assert rest["solution"][0] == golds[0]


def test_golds_under_their_own_name_are_read_where_the_reward_is_named(tmp_path):
    path = tmp_path / "golds.jsonl"
    path.write_text(json.dumps({"prompt": "?", "answer": "N/A"}))
    assert load_data(str(path)).num_rows == 1
    with pytest.raises(ValueError, match="1 of 1 golds in the column `answer` cannot be read for the reward accuracy"):
        load_data(str(path), reward="accuracy")
