"""The engines: what they are asked, where completions end, and that seeds decide.

vLLM's is a stub here that records what it was asked and answers in vLLM's classes' shape; no real engine runs.
"""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from credit_trl.generation.engines import (
    Completion,
    Sampling,
    TransformersEngine,
    VLLMEngine,
    decode,
    encode,
)
from credit_trl.generation.sampling import end_ids, generate
from credit_trl.testbed import BASE_MODEL, make_dataset


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine.load(str(BASE_MODEL), dtype="float32", batch_size=5)


def test_encode_and_decode_follow_the_kind_of_prompt(engine):
    tokenizer = engine.tokenizer
    assert encode(tokenizer, ["1+2:"], {}) == [tokenizer("1+2:")["input_ids"]]
    assert decode(tokenizer, ["1+2:"], [tokenizer("#3")["input_ids"]]) == ["#3"]


def test_messages_go_through_the_chat_template(engine, monkeypatch):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if loud %}#{% endif %}:"
    monkeypatch.setattr(engine.tokenizer, "chat_template", template)
    prompt = [{"role": "user", "content": "1+2"}]
    assert encode(engine.tokenizer, [prompt], {}) == [engine.tokenizer("1+2:", add_special_tokens=False)["input_ids"]]
    assert encode(engine.tokenizer, [prompt], {"loud": True}) == [
        engine.tokenizer("1+2#:", add_special_tokens=False)["input_ids"]
    ]
    completion = engine.tokenizer("#3")["input_ids"]
    assert decode(engine.tokenizer, [prompt], [completion]) == [[{"role": "assistant", "content": "#3"}]]


def test_completions_end_with_their_end_or_are_marked_as_cut(engine):
    prompt_ids = encode(engine.tokenizer, make_dataset(6)["prompt"][:], {})
    end = engine.tokenizer.eos_token_id
    whole = engine.sample(prompt_ids, 2, Sampling(max_completion_length=60), 0)
    assert [len(group) for group in whole] == [2] * 6
    finished = [completion for group in whole for completion in group if not completion.truncated]
    assert len(finished) >= 10
    for completion in finished:
        assert completion.ids.count(end) == 1 and completion.ids[-1] == end
    cut = engine.sample(prompt_ids, 2, Sampling(max_completion_length=7), 0)
    assert all(completion.truncated and len(completion.ids) == 7 for group in cut for completion in group)


def test_the_seed_decides_and_samples_of_a_problem_differ(engine):
    prompt_ids = encode(engine.tokenizer, make_dataset(3)["prompt"][:], {})
    sampling = Sampling(max_completion_length=40)
    first = engine.sample(prompt_ids, 8, sampling, 0)
    assert engine.sample(prompt_ids, 8, sampling, 0) == first
    assert engine.sample(prompt_ids, 8, sampling, 1) != first
    assert len({tuple(completion.ids) for completion in first[0]}) > 1


def test_completions_belong_to_their_prompts(engine):
    prompts = make_dataset(7, seed=3)["prompt"][:]
    prompt_ids = encode(engine.tokenizer, prompts, {})
    greedy = engine.sample(prompt_ids, 1, Sampling(temperature=0, max_completion_length=40), 0)
    for ids, (completion,) in zip(prompt_ids, greedy, strict=True):
        inputs = torch.tensor([ids])
        alone = engine.model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=40,
            pad_token_id=engine.tokenizer.pad_token_id,
        )  # fmt: skip
        assert completion.ids == alone[0, len(ids) :].tolist()
    # As a hot distribution would not.
    hot = engine.sample(prompt_ids, 1, Sampling(temperature=50.0, max_completion_length=40), 0)
    assert hot != greedy
    narrow = engine.sample(prompt_ids, 1, Sampling(temperature=50.0, top_k=1, max_completion_length=40), 0)
    assert narrow == greedy


def test_generate_is_the_models_own_distribution_by_default(engine):
    ids = encode(engine.tokenizer, ["5+12*3-8:"] * 2000, {})
    torch.manual_seed(0)
    first = [completion[0] for completion in generate(engine.model, engine.tokenizer, ids, 1, {})]
    with torch.no_grad():
        logits = engine.model(torch.tensor(ids[:1])).logits[0, -1]
    shares = torch.bincount(torch.tensor(first), minlength=len(logits)) / len(first)
    assert torch.allclose(shares, logits.softmax(-1), atol=0.04)


@pytest.mark.thorough
@pytest.mark.parametrize("adapter", [False, True])
def test_options_that_a_model_brings_along_are_not_applied(engine, monkeypatch, adapter):
    """Neither to samples nor to the likeliest tokens; those that are asked for are, and the model's are put back."""
    model = get_peft_model(copy.deepcopy(engine.model), LoraConfig(r=2)) if adapter else engine.model
    ids = encode(engine.tokenizer, make_dataset(8)["prompt"][:], {})
    end = engine.tokenizer.eos_token_id

    def sampled(**sampling):
        torch.manual_seed(0)
        return generate(model, engine.tokenizer, ids, 40, sampling)

    expected, greedy, penalized = sampled(), sampled(temperature=0), sampled(repetition_penalty=3.0)
    assert expected != greedy and expected != penalized
    likeliest = expected[0][0]
    for hidden in (
        dict(repetition_penalty=3.0), dict(min_p=0.9), dict(typical_p=0.1), dict(epsilon_cutoff=0.3),
        dict(no_repeat_ngram_size=1), dict(suppress_tokens=[likeliest]), dict(bad_words_ids=[[likeliest]]),
        dict(num_beams=2), dict(min_new_tokens=40),
    ):  # fmt: skip
        config = GenerationConfig(eos_token_id=end, **hidden)
        base = model.get_base_model() if adapter else model
        with monkeypatch.context() as patch:
            patch.setattr(base, "generation_config", config)
            assert sampled() == expected and sampled(temperature=0) == greedy, hidden
            assert base.generation_config is config


@pytest.mark.parametrize("own", [None, 9, [9]])
def test_completions_end_as_in_trl_at_the_models_ends_and_the_tokenizers(engine, monkeypatch, own):
    """A base model's generation config need not have the token that ends a message."""
    prompts = make_dataset(8)["prompt"][:]
    monkeypatch.setattr(engine.model, "generation_config", GenerationConfig(eos_token_id=own))
    ends = {engine.tokenizer.eos_token_id, *([] if own is None else [9])}  # 9: the digit 0, in some completions
    assert end_ids(engine.model, engine.tokenizer) == ends
    torch.manual_seed(0)
    found = generate(engine.model, engine.tokenizer, encode(engine.tokenizer, prompts, {}), 60, {})
    assert {ids[-1] for ids in found if len(ids) < 60} == ends
    assert not any(end in ids[:-1] for ids in found for end in ends)


@pytest.mark.parametrize(
    "wrong", [dict(temperature=-1), dict(top_p=0), dict(top_p=1.1), dict(top_k=-1), dict(max_completion_length=0)]
)
def test_sampling_refuses(wrong):
    with pytest.raises(ValueError, match="sampling needs"):
        Sampling(**wrong)


@pytest.fixture
def stub_vllm(monkeypatch):
    """A module `vllm` that notes what it is asked; each sample is its prompt's last token, the place and the sample."""
    asked = SimpleNamespace(llm=None, calls=[])

    class LLM:
        def __init__(self, **options):
            asked.llm = options

        def generate(self, prompts, params, use_tqdm):
            asked.calls.append((prompts, params, use_tqdm))
            return [
                SimpleNamespace(
                    outputs=[
                        SimpleNamespace(
                            token_ids=(prompt["prompt_token_ids"][-1], place, sample),
                            finish_reason="length" if sample else "stop",
                        )
                        for sample in range(one.n)
                    ]
                )
                for place, (prompt, one) in enumerate(zip(prompts, params, strict=True))
            ]

    module = SimpleNamespace(LLM=LLM, SamplingParams=lambda **options: SimpleNamespace(**options))
    monkeypatch.setitem(sys.modules, "vllm", module)
    return asked


def test_vllm_gets_token_ids_and_every_setting(stub_vllm):
    engine = VLLMEngine(str(BASE_MODEL), dtype="float32", tensor_parallel_size=2)
    assert stub_vllm.llm == dict(
        model=str(BASE_MODEL), revision="main", dtype="float32", trust_remote_code=False, tensor_parallel_size=2
    )
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=20, max_completion_length=99)
    got = engine.sample([[5, 6], [7, 8]], 3, sampling, 100)
    ((prompts, params, _),) = stub_vllm.calls
    assert prompts == [{"prompt_token_ids": [5, 6]}, {"prompt_token_ids": [7, 8]}]
    assert [vars(one) for one in params] == [
        dict(n=3, temperature=0.7, top_p=0.9, top_k=20, max_tokens=99, seed=seed) for seed in (100, 103)
    ]
    assert got == [
        [Completion([6, 0, 0], False), Completion([6, 0, 1], True), Completion([6, 0, 2], True)],
        [Completion([8, 1, 0], False), Completion([8, 1, 1], True), Completion([8, 1, 2], True)],
    ]


def test_a_missing_vllm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"pip install 'trl\[vllm\]'"):
        VLLMEngine(str(BASE_MODEL))
