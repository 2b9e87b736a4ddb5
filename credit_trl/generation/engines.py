"""Sample completions for prompts of token ids, from a transformers model or from vLLM.

A trainer's own engine is in `trainer_engine.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.data_utils import apply_chat_template, is_conversational

from .sampling import end_ids, generate, own_random_state

Prompt = str | list[dict[str, str]]


class Completion(NamedTuple):
    """Hold sampled token ids, and how they end."""

    ids: list[int]  # tokens up to and with the one that ended it
    truncated: bool  # True if it was cut at `max_completion_length`


@dataclass(frozen=True)
class Sampling:
    """Say how completions are sampled; the defaults are the model's own distribution.

    Args:
        temperature: divisor of the logits; 0 takes the likeliest token each time.
        top_p: share of the likeliest tokens that is sampled from, in (0, 1].
        top_k: number of the likeliest tokens that are sampled from; 0 for all of them.
        max_completion_length: tokens; longer completions are cut there.

    Raises `ValueError` for a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_completion_length: int = 256

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_completion_length < 1:
            raise ValueError(
                "sampling needs temperature >= 0, 0 < top_p <= 1, top_k >= 0 (0: all tokens) and "
                f"max_completion_length >= 1, got {self}"
            )


class Engine(Protocol):
    """Sample completions, as `TransformersEngine`, `VLLMEngine` and `TrainerEngine` do."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def sample(
        self, prompt_ids: Sequence[list[int]], num_samples: int, sampling: Sampling | None, seed: int
    ) -> list[list[Completion]]:
        """Return `num_samples` completions for each prompt, in the order of the prompts.

        `sampling=None` leaves it to the engine: `Sampling()`, or for a trainer's engine that of the training.
        """


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], chat_template_kwargs: dict[str, Any]
) -> list[list[int]]:
    """Return the token ids of `prompts`; messages go through the chat template."""
    if not is_conversational({"prompt": prompts[0]}):
        return tokenizer(list(prompts))["input_ids"]
    rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts]
    texts = [apply_chat_template(row, tokenizer, **chat_template_kwargs)["prompt"] for row in rows]
    # A chat template writes the special tokens itself.
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def decode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], completion_ids: list[list[int]]
) -> list[str] | list[list[dict[str, str]]]:
    """Return completions as TRL hands them to reward functions: text for text, a message for messages."""
    answers = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    if is_conversational({"prompt": prompts[0]}):
        return [[{"role": "assistant", "content": answer}] for answer in answers]
    return answers


def load_tokenizer(model: str, revision: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer of `model`, which pads with EOS if it has no token for padding."""
    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class TransformersEngine:
    """Sample with `model.generate`; the model's mode and all random states stay as they were.

    Args:
        model: model in memory, not wrapped for distributed training.
        tokenizer: tokenizer of the model.
        batch_size: completions at a time.
        options: options of `model.generate` for which `Sampling` has no field, such as `min_p`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 128,
        options: dict[str, Any] | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.options = options or {}

    @classmethod
    def load(
        cls, model: str, *, revision: str = "main", dtype: str = "auto", trust_remote_code: bool = False,
        batch_size: int = 128,
    ) -> Self:  # fmt: skip
        """Load `model`, of the hub or from a folder, onto the GPU if there is one."""
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        loaded = AutoModelForCausalLM.from_pretrained(
            model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code, device_map=device
        )
        return cls(loaded, load_tokenizer(model, revision, trust_remote_code), batch_size=batch_size)

    def sample(
        self, prompt_ids: Sequence[list[int]], num_samples: int, sampling: Sampling | None, seed: int
    ) -> list[list[Completion]]:
        """Sample as `Engine` says. The same prompts, batch size and seed give the same completions."""
        sampling = sampling or Sampling()
        options = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            **self.options,
        }
        repeated = [ids for ids in prompt_ids for _ in range(num_samples)]
        completion_ids: list[list[int]] = []
        with own_random_state(self.model, seed):
            for start in range(0, len(repeated), self.batch_size):
                batch = repeated[start : start + self.batch_size]
                completion_ids += generate(self.model, self.tokenizer, batch, sampling.max_completion_length, options)
        ends = end_ids(self.model, self.tokenizer)
        completions = [Completion(ids, ids[-1] not in ends) for ids in completion_ids]
        return [completions[start : start + num_samples] for start in range(0, len(completions), num_samples)]


class VLLMEngine:
    """Sample with vLLM, which makes batches of its own.

    Args:
        model: name on the hub, or folder.
        revision, dtype, trust_remote_code: as for a transformers model.
        options: further options of `vllm.LLM`.

    Raises `ValueError` if vLLM is not installed.
    """

    def __init__(
        self, model: str, *, revision: str = "main", dtype: str = "auto", trust_remote_code: bool = False,
        **options: Any,
    ):  # fmt: skip
        try:
            import vllm
        except ModuleNotFoundError as error:
            raise ValueError("the engine vllm needs a package: pip install 'trl[vllm]'") from error
        self._sampling_params = vllm.SamplingParams
        self.llm = vllm.LLM(model=model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code, **options)
        self.tokenizer = load_tokenizer(model, revision, trust_remote_code)

    def sample(
        self, prompt_ids: Sequence[list[int]], num_samples: int, sampling: Sampling | None, seed: int
    ) -> list[list[Completion]]:
        """Sample as `Engine` says. Every prompt gets a seed of its own."""
        sampling = sampling or Sampling()
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
            [Completion(list(sample.token_ids), sample.finish_reason == "length") for sample in output.outputs]
            for output in outputs
        ]
