"""Completions for prompts that are token ids, from a transformers model or from vLLM."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate.utils import is_peft_model, set_seed
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.data_utils import apply_chat_template, is_conversational

Prompt = str | list[dict[str, str]]


class Completion(NamedTuple):
    ids: list[int]  # with the token that ended it
    truncated: bool  # whether it was cut at the most tokens that it may have


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled; `temperature` 0 takes the likeliest token each time."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    max_completion_length: int = 256

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_completion_length < 1:
            raise ValueError(
                "sampling needs temperature >= 0, 0 < top_p <= 1, top_k >= 0 (0: all tokens) and "
                f"max_completion_length >= 1, got {self}"
            )


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], chat_template_kwargs: dict[str, Any]
) -> list[list[int]]:
    """The token ids of `prompts`; messages go through the chat template."""
    if not is_conversational({"prompt": prompts[0]}):
        return tokenizer(list(prompts))["input_ids"]
    rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts]
    texts = [apply_chat_template(row, tokenizer, **chat_template_kwargs)["prompt"] for row in rows]
    # A chat template writes the special tokens itself.
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def decode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], completion_ids: list[list[int]]
) -> list[str] | list[list[dict[str, str]]]:
    """Completions as TRL hands them to reward functions: text for text, a message for messages."""
    answers = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    if is_conversational({"prompt": prompts[0]}):
        return [[{"role": "assistant", "content": answer}] for answer in answers]
    return answers


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[list[int]],
    max_completion_length: int,
    sampling: dict[str, Any],
) -> list[list[int]]:
    """One completion for each of `prompt_ids`, up to and with the token that ended it.

    `sampling` has options of `model.generate`, by default the model's own distribution: the penalties, filters and
    forbidden tokens of the model's generation config are not applied, as by an engine that is told how to sample.
    """
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "do_sample": True} | sampling
    if options["temperature"] == 0:
        options = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    inputs = tokenizer.pad({"input_ids": list(prompt_ids)}, return_tensors="pt", padding_side="left")
    ends = end_ids(model, tokenizer)
    with _generation_config(model, GenerationConfig(eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id)):
        output = model.generate(  # type: ignore[operator]  # causal models inherit it, PreTrainedModel does not
            input_ids=inputs["input_ids"].to(model.device),
            attention_mask=inputs["attention_mask"].to(model.device),
            max_new_tokens=max_completion_length,
            **options,
        )
    completions = []
    for ids in output[:, inputs["input_ids"].shape[1] :].tolist():
        length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
        completions.append(ids[:length])
    return completions


@contextmanager
def _generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """`model.generate` fills in what it is not told from the model's own config, whatever config it is given."""
    base = model.get_base_model() if is_peft_model(model) else model  # type: ignore[operator]  # PEFT's models have it
    before = base.generation_config
    base.generation_config = config
    try:
        yield
    finally:
        base.generation_config = before


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a completion, as in TRL: those of the model's generation config, and the tokenizer's EOS."""
    ids = model.generation_config.eos_token_id  # type: ignore[union-attr]  # every model that generates has one
    return {one for one in (*(ids if isinstance(ids, list) else [ids]), tokenizer.eos_token_id) if one is not None}


def load_tokenizer(model: str, revision: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class TransformersEngine:
    """Samples with `model.generate`, `batch_size` completions at a time, on a GPU where there is one."""

    def __init__(
        self, model: str, *, revision: str = "main", dtype: str = "auto", batch_size: int = 128,
        trust_remote_code: bool = False,
    ):  # fmt: skip
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        self.model = AutoModelForCausalLM.from_pretrained(
            model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code, device_map=device
        )
        self.tokenizer = load_tokenizer(model, revision, trust_remote_code)
        self.batch_size = batch_size

    def sample(
        self, prompt_ids: Sequence[list[int]], num_samples: int, sampling: Sampling, seed: int
    ) -> list[list[Completion]]:
        """`num_samples` completions for each prompt. The same prompts, batch size and seed give the same ones."""
        torch.manual_seed(seed)
        repeated = [ids for ids in prompt_ids for _ in range(num_samples)]
        options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        completion_ids: list[list[int]] = []
        with torch.no_grad():
            for start in range(0, len(repeated), self.batch_size):
                batch = repeated[start : start + self.batch_size]
                completion_ids += generate(self.model, self.tokenizer, batch, sampling.max_completion_length, options)
        ends = end_ids(self.model, self.tokenizer)
        completions = [Completion(ids, ids[-1] not in ends) for ids in completion_ids]
        return [completions[start : start + num_samples] for start in range(0, len(completions), num_samples)]


class VLLMEngine:
    """Samples with vLLM, which makes batches of its own. `options` are those of `vllm.LLM`."""

    def __init__(
        self, model: str, *, revision: str = "main", dtype: str = "auto", trust_remote_code: bool = False,
        **options: Any,
    ):  # fmt: skip
        try:
            import vllm
        except ModuleNotFoundError as error:
            raise ValueError("the engine vllm needs a package: pip install credit_trl[vllm]") from error
        self._sampling_params = vllm.SamplingParams
        self.llm = vllm.LLM(model=model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code, **options)
        self.tokenizer = load_tokenizer(model, revision, trust_remote_code)

    def sample(
        self, prompt_ids: Sequence[list[int]], num_samples: int, sampling: Sampling, seed: int
    ) -> list[list[Completion]]:
        """`num_samples` completions for each prompt. Every prompt gets a seed of its own."""
        params = [
            self._sampling_params(
                n=num_samples,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_completion_length,
                # vLLM seeds the samples of a prompt with consecutive numbers.
                seed=seed + place * num_samples,
            )
            for place in range(len(prompt_ids))
        ]
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompt_ids], params, use_tqdm=False)
        return [
            [Completion(list(one.token_ids), one.finish_reason == "length") for one in output.outputs]
            for output in outputs
        ]


class Engine(Protocol):
    tokenizer: PreTrainedTokenizerBase

    def sample(
        self, prompt_ids: Sequence[list[int]], num_samples: int, sampling: Sampling, seed: int
    ) -> list[list[Completion]]: ...


@contextmanager
def own_random_state(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Inference mode with a random state of its own, so that an evaluation changes nothing about the training."""
    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices), torch.no_grad():
        set_seed(seed)
        model.eval()
        try:
            yield
        finally:
            model.train(training)
            random.setstate(python_state)
            np.random.set_state(numpy_state)
