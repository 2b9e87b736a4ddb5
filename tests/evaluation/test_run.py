"""Runs that are interrupted, and the table that is made of their completions."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from credit_trl.evaluation.report import check_settings, fingerprint, markdown_table, summarize, write_results
from credit_trl.evaluation.run import evaluate_problems, named_scorer
from credit_trl.generation.engines import Completion, Sampling
from credit_trl.testbed import Problem, make_dataset
from scripts.pretrain_testbed import build_tokenizer

SAMPLES = 4


class Oracle:
    """Answers the testbed's problems, right in a share of the samples that its seed and the place decide."""

    def __init__(self, fails_after=None):
        self.tokenizer = build_tokenizer()
        self.seeds = []
        self.fails_after = fails_after

    def sample(self, prompt_ids, num_samples, sampling, seed):
        if len(self.seeds) == self.fails_after:
            raise KeyboardInterrupt
        self.seeds.append(seed)
        generator = np.random.default_rng(seed)
        groups = []
        for prompt in self.tokenizer.batch_decode(prompt_ids):
            answer = Problem.parse(prompt).answer
            shifts = generator.integers(0, 2, num_samples) * generator.integers(1, 17, num_samples)
            texts = [f"#{(answer + shift) % 17}" for shift in shifts]
            ids = [[*self.tokenizer(text)["input_ids"], self.tokenizer.eos_token_id] for text in texts]
            groups.append([Completion(tokens, bool(shift == 1)) for tokens, shift in zip(ids, shifts, strict=True)])
        return groups


def run(engine, folder, problems, **options):
    return evaluate_problems(
        problems,
        named_scorer("testbed"),
        engine,
        num_samples=SAMPLES,
        sampling=Sampling(),
        chunk_size=4,
        folder=folder,
        **options,
    )


@pytest.fixture
def problems():
    return make_dataset(10)


def test_completions_are_kept_with_their_scores(problems, tmp_path):
    rows = run(Oracle(), tmp_path, problems)
    assert [(row["problem"], row["sample"]) for row in rows] == [(p, s) for p in range(10) for s in range(SAMPLES)]
    for row in rows:
        problem = problems[row["problem"]]
        assert row["prompt"] == problem["prompt"]
        assert row["answer"] == row["completion"]
        assert row["score"] == float(row["completion"] == f"#{problem['answer']}")
        assert row["truncated"] == (row["completion"] == f"#{(problem['answer'] + 1) % 17}")
        assert row["num_tokens"] == 3  # the mark, a number and the end
    parts = sorted(tmp_path.glob("*.parquet"))
    assert [part.name for part in parts] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert [row for part in parts for row in pq.read_table(part).to_pylist()] == rows
    assert len({row["score"] for row in rows}) == 2


def test_an_interrupted_run_ends_like_any_other(problems, tmp_path):
    (tmp_path / "whole").mkdir()
    expected = run(Oracle(), tmp_path / "whole", problems)
    folder = tmp_path / "cut"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(Oracle(fails_after=2), folder, problems)
    (folder / "part-00002.draft").write_bytes(b"half a par")  # as a run leaves it that is killed while it writes
    second = Oracle()
    assert run(second, folder, problems) == expected
    assert len(second.seeds) == 1
    third = Oracle()
    assert run(third, folder, problems) == expected
    assert third.seeds == []


def test_chunks_and_seeds_differ(problems, tmp_path):
    seeds = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        engine = Oracle()
        run(engine, folder, problems, seed=seed)
        seeds += engine.seeds
    assert len(set(seeds)) == 6


def test_changed_settings_are_refused(tmp_path):
    settings = {"model": "a", "temperature": 1.0, "chat_template_kwargs": {}, "batch_size": None}
    folder = tmp_path / "new" / "folder"
    check_settings(folder, settings)
    check_settings(folder, dict(settings))
    with pytest.raises(ValueError, match=r"another temperature \(was 1.0, is 0.5\)\. Go on with the settings"):
        check_settings(folder, settings | {"temperature": 0.5})
    with pytest.raises(ValueError, match=r"model \(was 'a', is 'b'\), top_p \(was None, is 0.9\)"):
        check_settings(folder, settings | {"model": "b", "top_p": 0.9})
    assert json.loads((folder / "settings.json").read_text()) == settings


def test_the_fingerprint_is_that_of_the_problems():
    assert fingerprint(make_dataset(5)) == fingerprint(make_dataset(5))
    assert len({fingerprint(make_dataset(5)), fingerprint(make_dataset(6)), fingerprint(make_dataset(5, seed=1))}) == 3
    same_prompt = [Dataset.from_list([{"prompt": "?", "solution": text}]) for text in "12"]
    assert fingerprint(same_prompt[0]) != fingerprint(same_prompt[1])


def rows_of(scores, answers):
    return [
        {"score": value, "answer": vote, "num_tokens": 10 + place, "truncated": place == 0}
        for group, votes in zip(scores, answers, strict=True)
        for place, (value, vote) in enumerate(zip(group, votes, strict=True))
    ]


def test_the_summary():
    scores = [[1, 1, 0, 0.5], [0, 0, 0, 1], [0, 0, 0, 0], [None] * 4]
    answers = [["a", "a", "b", "c"], ["b", "b", "c", "a"], [None, "b", "c", "d"], ["a"] * 4]
    summary = summarize(rows_of(scores, answers), 4)
    means = {metric: values[0] for metric, values in summary["metrics"].items()}
    assert means == pytest.approx(
        {
            "pass@1": (2 / 4 + 1 / 4 + 0) / 3,
            "pass@2": ((1 - 1 / 6) + 1 / 2 + 0) / 3,
            "pass@4": 2 / 3,
            "mean@4": (2.5 / 4 + 1 / 4) / 3,
            "maj@4": 1 / 3,
        }
    )
    assert (summary["problems"], summary["unscored"], summary["samples"]) == (3, 1, 4)
    assert (summary["mean_tokens"], summary["truncated"]) == (11.5, 0.25)
    for estimate, low, high in summary["metrics"].values():
        assert low <= estimate <= high
    assert summary["metrics"]["pass@4"][1:] == (0.0, 1.0)  # of three problems


def test_the_summary_without_votes_and_for_a_number_of_samples_between_powers_of_two():
    summary = summarize(rows_of([[1, 0, 0]], [[None] * 3]), 3, with_votes=False)
    assert list(summary["metrics"]) == ["pass@1", "pass@2", "pass@3", "mean@3"]
    assert list(summarize(rows_of([[1]], [["a"]]), 1)["metrics"]) == ["pass@1", "mean@1", "maj@1"]


def test_problems_that_nobody_can_judge_are_an_error():
    with pytest.raises(ValueError, match="could judge none of the problems"):
        summarize(rows_of([[None, None]], [["a", "b"]]), 2)


def test_the_table(tmp_path):
    votes = summarize(rows_of([[1, 0], [1, 1]], [["a", "b"], ["a", "a"]]), 2)
    code = summarize(rows_of([[1, 0]], [[None, None]]), 2, with_votes=False)
    write_results(tmp_path, {"first": votes, "second": code})
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[0] == "| benchmark | problems | pass@1 | mean@2 | pass@2 | maj@2 | tokens | cut short |"
    number = "0.750 (0.500 to 1.000)"
    assert lines[2] == f"| first | 2 | {number} | {number} | 1.000 (1.000 to 1.000) | {number} | 10 | 50.0% |"
    half = "0.500 (0.500 to 0.500)"
    assert lines[3] == f"| second | 1 | {half} | {half} | 1.000 (1.000 to 1.000) |  | 10 | 50.0% |"
    assert all(line.count("|") == lines[0].count("|") for line in lines[:4])
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["first"]["metrics"]["pass@1"][0] == 0.75
    single = {"one": summarize(rows_of([[1]], [["a"]]), 1)}
    assert markdown_table(single).startswith("| benchmark | problems | pass@1 | mean@1 | maj@1 |")
