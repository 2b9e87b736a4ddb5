"""The testbed's process reward models: their labels, their training and storage, and the measurement of a localizer."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.localizers import prm
from benchmarks.localizers.prm import Solution
from credit_trl.testbed import BASE_MODEL, Problem, first_error
from credit_trl.testbed.facts import sample_solution, shaky_facts

PROBLEM = Problem(1, (("+", 2), ("*", 5)))
WRONG = Solution(PROBLEM, ("1+2=4", "4*5=3", "#2"), (False, True, False))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE_MODEL)


def test_labels_stand_at_the_delimiter_after_each_step(tokenizer):
    ids, labels = prm.tokenize(WRONG, tokenizer)
    assert tokenizer.decode(ids) == "1+2*5:1+2=4\n\n4*5=3\n\n#2\n\n"
    assert labels.tolist() == [-100] * 6 + [*[-100] * 5, 0] + [*[-100] * 5, 1] + [-100, -100, 0]


def test_sampled_solutions_are_labelled_with_the_truth():
    solutions = prm.label_solutions(12, seed=3)
    assert {len(solution.problem.operations) for solution in solutions} == {12, 16}
    for problem, steps, truths in solutions:
        assert len(steps) == len(truths)
        error = first_error(problem, "\n\n".join(steps))
        assert error == (truths.index(False) + 1 if False in truths else None) or error == len(steps) + 1
    assert solutions == prm.label_solutions(12, seed=3)


def test_training_is_the_same_each_time_and_leaves_random_states_alone():
    before = torch.get_rng_state()
    first, second = prm.train_prm([WRONG] * 20, steps=3), prm.train_prm([WRONG] * 20, steps=3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_stored_model_is_not_trained_again(tmp_path, monkeypatch):
    trained = []

    def short(solutions):
        trained.append(len(solutions))
        return train([WRONG] * 20, steps=1)

    train = prm.train_prm
    monkeypatch.setattr(prm, "train_prm", short)
    path = prm.load_or_train(4, tmp_path)
    assert prm.load_or_train(4, tmp_path) == path and trained == [4]
    assert {entry.name for entry in tmp_path.iterdir()} - {f"{path.name}.lock"} == {path.name}
    found = [prm.Failure(PROBLEM, WRONG.steps, 1, None)]
    assert set(prm.measure_localizer(prm.prm_localizer(4, tmp_path), found)) >= {"hit_rate", "clean_rate"}


def test_workers_that_start_together_train_a_model_once(tmp_path, monkeypatch):
    trained = []

    def slow(solutions):
        trained.append(len(solutions))
        time.sleep(0.5)
        return model

    model = prm.train_prm([WRONG] * 20, steps=1)
    monkeypatch.setattr(prm, "train_prm", slow)
    with ThreadPoolExecutor() as executor:
        paths = list(executor.map(lambda _: prm.load_or_train(4, tmp_path), range(3)))
    assert len(set(paths)) == 1 and trained == [4]


def test_an_oracle_hits_and_what_names_the_last_step_keeps_errors():
    rng, shaky = prm.random.Random(0), shaky_facts(0)
    found = []
    while len(found) < 20:
        problem = Problem.sample(rng, 6)
        text = sample_solution(problem, shaky, rng)
        if (error := first_error(problem, text)) is not None:
            found.append(prm.Failure(problem, tuple(text.split("\n\n")), error, None))
    errors = [failure.error for failure in found]
    oracle = prm.measure_localizer(lambda failed: errors, found)
    assert oracle["hit_rate"]["value"] == oracle["clean_rate"]["value"] == 1
    assert oracle["hit_rate_random"]["value"] == pytest.approx(1 / 7)
    last = prm.measure_localizer(lambda failed: [len(completion.steps) for completion in failed], found)
    assert last["clean_rate"]["value"] == last["hit_rate"]["value"] == sum(error == 7 for error in errors) / 20
