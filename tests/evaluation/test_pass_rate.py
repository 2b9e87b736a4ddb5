"""The pass rate: what it counts, and that measuring it changes nothing."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset

from credit_trl.evaluation.run import pass_rate
from scripts.pretrain_testbed import build_model, build_tokenizer


@pytest.fixture(scope="module")
def model_and_tokenizer():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    return build_model(tokenizer), tokenizer


def measure(model_and_tokenizer, reward, values, **options):
    data = Dataset.from_dict({"prompt": [f"{value}+1:" for value in values], "value": values})
    return pass_rate(*model_and_tokenizer, data, reward, max_completion_length=3, **options)


def test_counts_the_completions_with_full_reward(model_and_tokenizer):
    seen = []

    def reward(prompts, completions, value, **kwargs):
        seen.extend(zip(prompts, value, strict=True))
        return [{0: 1.0, 1: 0.99, 2: 0.0, 3: None, 4: 1.0}[number] for number in value]

    # 0 and 4 pass, 1 and 2 do not, 3 does not count: 2 of 4. Batches of 4 cut through a problem's 3 samples.
    assert measure(model_and_tokenizer, reward, [0, 1, 2, 3, 4], num_samples=3, batch_size=4) == 0.5
    assert sorted(seen) == sorted([(f"{value}+1:", value) for value in range(5)] * 3)


def test_samples_differ_and_follow_the_seed(model_and_tokenizer):
    completions = []

    def reward(completions_=None, **kwargs):
        completions.append(kwargs["completions"])
        return [0.0] * len(kwargs["completions"])

    for seed in (0, 0, 1):
        measure(model_and_tokenizer, reward, [5], num_samples=16, seed=seed)
    assert completions[0] == completions[1] != completions[2]
    assert len(set(completions[0])) > 1
    assert not any(text.startswith("5+1:") for text in completions[0])  # the completion, without its prompt


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_mode_and_the_random_state_alone(model_and_tokenizer, training, monkeypatch):
    model, _ = model_and_tokenizer
    model.train(training)
    state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    modes, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **options: modes.append(model.training) or generate(**options))

    def reward(completions, **kwargs):
        return [float(random.random() + np.random.random() >= 0)] * 4

    measure(model_and_tokenizer, reward, [1])
    assert modes == [False]
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    assert np.random.get_state()[1].tolist() == numpy_state


def test_nothing_to_count_is_an_error(model_and_tokenizer):
    with pytest.raises(ValueError, match="no completion counts"):
        measure(model_and_tokenizer, lambda completions, **kwargs: [None] * len(completions), [1, 2])


def test_samples_as_it_is_told(model_and_tokenizer):
    completions = []

    def reward(**kwargs):
        completions.append(set(kwargs["completions"]))
        return [0.0] * len(kwargs["completions"])

    measure(model_and_tokenizer, reward, [5], num_samples=16, sampling={"temperature": 1e-4})
    measure(model_and_tokenizer, reward, [5], num_samples=16, sampling={"top_k": 1})
    assert len(completions[0]) == len(completions[1]) == 1  # greedy, both of them
    assert completions[0] == completions[1]


def test_hands_over_what_trl_hands_over(model_and_tokenizer):
    tokenizer = model_and_tokenizer[1]

    def reward(prompts, completions, completion_ids, value, trainer_state, log_extra, log_metric):
        log_extra("column", value)
        log_metric("metric", 1.0)
        return [
            float(tokenizer.decode(ids, skip_special_tokens=True) == text)
            for ids, text in zip(completion_ids, completions, strict=True)
        ]

    assert measure(model_and_tokenizer, reward, [1, 2]) == 1.0


def test_an_asynchronous_reward_is_refused(model_and_tokenizer):
    async def reward(completions, **kwargs):
        return [1.0] * len(completions)

    with pytest.raises(ValueError, match="asynchronous"):
        measure(model_and_tokenizer, reward, [1])
