"""A trainer's own engine: what it is asked, what it gives back, and that the training does not notice.

vLLM's place is taken by a stub with the attributes that TRL's client reads at each call.
"""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from credit_trl.generation import Completion, Sampling
from credit_trl.generation.samples import Sample
from credit_trl.generation.trainer_engine import TrainerEngine
from credit_trl.testbed import BASE_MODEL, make_dataset
from tests.helpers.training import QUIET_ON_CPU, digit_reward

DATA = make_dataset(4)
PROMPTS = list(DATA["prompt"])


@pytest.fixture
def trainer(tmp_path):
    settings = QUIET_ON_CPU | dict(output_dir=str(tmp_path), temperature=0.9, min_p=0.01, max_completion_length=20)
    trainer = GRPOTrainer(str(BASE_MODEL), digit_reward, args=GRPOConfig(**settings), train_dataset=DATA)
    trainer.model.train()
    return trainer


@pytest.fixture
def calls(trainer, monkeypatch):
    """The settings of every call and its number of prompts."""
    calls = []
    generate = trainer._generate_single_turn

    def watched(prompt_ids, *rest):
        config = trainer.generation_config
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "do_sample")
        calls.append((len(prompt_ids), *(getattr(config, name) for name in names), trainer.model.training))
        return generate(prompt_ids, *rest)

    monkeypatch.setattr(trainer, "_generate_single_turn", watched)
    return calls


def test_token_ids_and_texts_are_trls(trainer):
    engine = TrainerEngine(trainer)
    ids = engine.token_ids(PROMPTS)
    assert ids == [trainer._tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    end = trainer._tokenizer.eos_token_id
    assert engine.decode(PROMPTS[:1], ids[:1], [[*ids[1], end]]) == [PROMPTS[1]] == [engine.plain_text([*ids[1], end])]
    assert engine.exact_text([*ids[1], end]) == PROMPTS[1] + trainer._tokenizer.eos_token
    assert engine.end_ids == {end, trainer._tokenizer.pad_token_id}


@pytest.mark.parametrize("sees", [False, True])
def test_the_prompts_of_a_group_are_tokenized_once(trainer, monkeypatch, sees):
    """Equal texts, or for a model that sees the same object: two images may be compared in ways of their own."""
    tokenize, asked = trainer._tokenize_prompts, []

    def watched(prompts):
        asked.append(list(prompts))
        return tokenize(prompts)

    monkeypatch.setattr(trainer, "_tokenize_prompts", watched)
    monkeypatch.setattr(trainer, "_is_vlm", sees)
    first, second = PROMPTS[:2]
    copied = "".join(list(first))  # equal, and another object
    rows = [first, first, second, second, copied, first]
    assert TrainerEngine(trainer).token_ids(rows) == [tokenize([row])[0][0] for row in rows]
    assert asked == [[first, second, copied, first] if sees else [first, second, first]]


def test_a_rollout_changes_only_what_it_is_told_to(trainer, calls):
    engine, config, options = TrainerEngine(trainer), trainer.generation_config, trainer.generation_kwargs
    ids = engine.token_ids(PROMPTS)
    for given in ({}, dict(max_tokens=7), dict(max_tokens=7, temperature=0.3)):
        samples = engine.complete(PROMPTS, ids, **given)
        assert len(samples) == 4 and all(sample.logprobs is None for sample in samples)
        assert max(len(sample.ids) for sample in samples) <= given.get("max_tokens", 20)
    training = (4, 20, 0.9, 1.0, 0, 0.01, True, True)
    assert calls == [training, (4, 7, *training[2:]), (4, 7, 0.3, *training[3:])]
    assert trainer.generation_config is config and trainer.generation_kwargs is options


def test_settings_are_put_back_when_generation_fails(trainer, monkeypatch):
    config, options = trainer.generation_config, trainer.generation_kwargs

    def broken(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(trainer, "_generate_single_turn", broken)
    engine = TrainerEngine(trainer)
    for ask in (lambda: engine.complete(["1"], [[2]], 3, 0.3), lambda: engine.sample([[2]], 1, Sampling(), 0)):
        with pytest.raises(RuntimeError, match="out of memory"):
            ask()
        assert trainer.generation_config is config and trainer.generation_kwargs is options
        assert trainer.model.training


def test_samples_are_asked_for_in_batches_and_as_told(trainer, calls):
    engine = TrainerEngine(trainer, batch_size=5)
    ids = engine.token_ids(PROMPTS)
    sampling = Sampling(temperature=0.5, top_p=0.8, top_k=6, max_completion_length=3)
    groups = engine.sample(ids, 3, sampling, 0)
    assert [len(group) for group in groups] == [3] * 4
    assert all(len(completion.ids) <= 3 for group in groups for completion in group)
    assert [count for count, *_ in calls] == [5, 5, 2]
    assert {call[1:] for call in calls} == {
        (3, 0.5, 0.8, 6, 0.01, True, False)  # min_p, which Sampling does not have, is the training's
    }
    calls.clear()
    engine.sample(ids, 1, None, 0)
    assert calls == [(4, 20, 0.9, 1.0, 0, 0.01, True, False)]


def test_temperature_0_takes_the_likeliest_token(trainer):
    engine = TrainerEngine(trainer)
    ids = engine.token_ids(PROMPTS)
    first, second = (engine.sample(ids, 2, Sampling(temperature=0.0, max_completion_length=8), seed) for seed in (0, 1))
    assert first == second and all(group[0] == group[1] for group in first)


def test_a_seed_decides_and_nobody_else_notices(trainer):
    engine = TrainerEngine(trainer)
    ids = engine.token_ids(PROMPTS)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    groups = [engine.sample(ids, 2, Sampling(max_completion_length=9), seed) for seed in (3, 3, 4)]
    assert groups[0] == groups[1] != groups[2]
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2]) and trainer.model.training
    trainer.accelerator = SimpleNamespace(process_index=1)
    trainer._generate_single_turn = lambda ids, *rest: (torch.randint(9, (len(ids), 4)).tolist(), None)
    second = engine.sample(ids, 2, Sampling(), 3)
    trainer.accelerator.process_index = 0
    assert engine.sample(ids, 2, Sampling(), 3) != second  # no two processes make the same completions


def test_a_completion_is_cut_unless_an_end_ends_it(trainer, monkeypatch):
    end, pad = trainer._tokenizer.eos_token_id, trainer._tokenizer.pad_token_id
    monkeypatch.setattr(trainer, "_generate_single_turn", lambda *args: ([[5, end], [5, 6]], None))
    assert TrainerEngine(trainer).sample([[2], [3]], 1, None, 0) == [
        [Completion([5, end], False)],
        [Completion([5, 6], True)],
    ]
    assert end != pad


def test_vllm_reads_the_settings_and_log_probabilities_come_back(trainer, monkeypatch):
    client = SimpleNamespace(temperature=0.9, top_p=1.0, top_k=0, max_completion_length=20)
    client.generation_kwargs = {"temperature": 2.0, "max_tokens": 99, "min_tokens": 1}
    before, seen = dict(vars(client)), []

    def generate(prompt_ids, *rest):
        seen.append(dict(vars(client)))
        return [(5, 6)] * len(prompt_ids), [(-1.0, -2.0)] * len(prompt_ids)

    monkeypatch.setattr(trainer, "use_vllm", True)
    monkeypatch.setattr(trainer, "vllm_generation", client, raising=False)
    monkeypatch.setattr(trainer, "_generate_single_turn", generate)
    engine = TrainerEngine(trainer)
    assert engine.complete(["1"], [[2]], 7) == [Sample([5, 6], [-1.0, -2.0])]
    assert engine.complete(["1"], [[2]]) == [Sample([5, 6], [-1.0, -2.0])]
    engine.sample([[2]], 1, Sampling(0.5, 0.8, 6, 3), 0)
    engine.sample([[2]], 1, None, 0)
    short, sampled = dict(seen[0]), dict(seen[2])
    assert short == before | dict(max_completion_length=7, generation_kwargs={"temperature": 2.0, "min_tokens": 1})
    assert sampled == dict(
        temperature=0.5, top_p=0.8, top_k=6, max_completion_length=3, generation_kwargs={"min_tokens": 1}
    )
    assert seen[1] == seen[3] == before == vars(client)


def test_a_prefix_and_its_continuation():
    whole = Sample([1, 2, 3], [-0.1, -0.2, -0.3])
    assert whole.first(2) == Sample([1, 2], [-0.1, -0.2])
    assert whole.first(2).then(Sample([9], [-0.9])) == Sample([1, 2, 9], [-0.1, -0.2, -0.9])
    assert Sample([]).then(Sample([9], [-0.9])) == Sample([9], [-0.9])
    assert Sample([1]).then(Sample([2])) == Sample([1, 2]) and Sample([1]).first(0) == Sample([])
