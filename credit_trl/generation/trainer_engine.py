"""Sample with a trainer's own engine: the one place that reaches into TRL's privates to sample.

TRL generates with transformers, with transformers' continuous batching, or with vLLM. All of them are behind
`GRPOTrainer._generate_single_turn`, and read their settings anew at each call.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.chat_template_utils import parse_response
from trl.data_utils import is_conversational

from .engines import Completion, Sampling, own_random_state
from .samples import Sample


class TrainerEngine:
    """Sample with whichever engine `trainer` generates with, and with the weights that it has now.

    In distributed training every process has to call `complete` and `sample` equally often and with as many prompts,
    since some engines generate for several processes at once.

    Args:
        trainer: a `GRPOTrainer` of TRL or of this package, without tools and environments.
        batch_size: completions that `sample` asks for at a time, on each process.
    """

    def __init__(self, trainer: GRPOTrainer, batch_size: int = 128):
        self.trainer: Any = trainer  # what is used of it is private
        self.tokenizer: PreTrainedTokenizerBase = self.trainer._tokenizer
        self.batch_size = batch_size

    @property
    def end_ids(self) -> frozenset[int]:
        """Return the tokens that close a completion: those that end it, and padding."""
        return frozenset((*self.trainer.eos_token_ids, self.tokenizer.pad_token_id))

    @property
    def has_chat_template(self) -> bool:
        """Return whether messages can be put to the model."""
        return bool(self.trainer.chat_template or getattr(self.trainer.processing_class, "chat_template", None))

    def token_ids(self, prompts: list) -> list[list[int]]:
        """Return the token ids of `prompts`, texts or messages, as TRL makes them.

        Equal prompts in succession, as a group has them, are tokenized once. A model that sees gets prompts with images
        in them, for which only a prompt that is the same object counts as equal.
        """
        groups = [list(group) for _, group in groupby(prompts, key=id if self.trainer._is_vlm else None)]
        token_ids = self.trainer._tokenize_prompts([group[0] for group in groups])[0]
        return [list(ids) for ids, group in zip(token_ids, groups, strict=True) for _ in group]

    def complete(
        self,
        prompts: list,
        prompt_ids: list[list[int]],
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> list[Sample]:
        """Sample one completion for each of `prompt_ids`, of at most `max_tokens` tokens.

        A setting that is None is as in training. So are all other settings and the random state.

        Args:
            prompts: texts or messages, whose images the model sees.
            prompt_ids: token ids of `prompts`, which tokens of a completion may follow.
        """
        settings: dict[str, Any] = {"max_new_tokens": max_tokens, "temperature": temperature}
        with self._set({name: value for name, value in settings.items() if value is not None}):
            ids, logprobs = self.trainer._generate_single_turn(prompt_ids, *self._seen(prompts, prompt_ids), 1)
        if logprobs is None:
            return [Sample(list(tokens)) for tokens in ids]
        return [Sample(list(tokens), list(values)) for tokens, values in zip(ids, logprobs, strict=True)]

    def images(self, prompts: list) -> list[list] | None:
        """Return the images in the messages of each prompt, in order; None where no prompt has any."""
        if not is_conversational({"prompt": prompts[0]}):
            return None
        contents = [[message["content"] for message in prompt] for prompt in prompts]
        parts = [[part for content in each if isinstance(content, list) for part in content] for each in contents]
        images = [[part["image"] for part in each if part["type"] == "image"] for each in parts]
        return images if any(images) else None

    def _seen(self, prompts: list, prompt_ids: list[list[int]]) -> tuple[list[list | None] | None, dict[str, Any]]:
        """Return the images of `prompts`, and what a model that sees is given beside `prompt_ids`."""
        if not self.trainer._is_vlm:
            return None, {}
        _, images, fields = self.trainer._tokenize_prompts(prompts)
        for name in {"token_type_ids", "mm_token_type_ids"} & fields.keys():  # 0 is text, as a completion is
            pairs = zip(fields[name], prompt_ids, strict=True)
            fields[name] = [[*types, *[0] * (len(ids) - len(types))] for types, ids in pairs]
        return images, fields

    def sample(
        self, prompt_ids: Sequence[list[int]], num_samples: int, sampling: Sampling | None, seed: int
    ) -> list[list[Completion]]:
        """Sample `num_samples` completions for each of this process's prompts; the training does not notice.

        Random states of Python, NumPy and torch are put back. Only vLLM keeps random numbers of its own, which are
        used up, and for which `seed` does nothing.

        Args:
            prompt_ids: token ids of prompts.
            num_samples: completions for each prompt.
            sampling: settings; None samples as in training. Options that `Sampling` lacks, such as `min_p`, always are
                those of the training.
            seed: seed of the sampling, to which the number of the process is added.
        """
        repeated = [ids for ids in prompt_ids for _ in range(num_samples)]
        completion_ids: list[list[int]] = []
        process = self.trainer.accelerator.process_index
        with own_random_state(self.trainer.model, seed + process), self._set(_settings(sampling)):
            for start in range(0, len(repeated), self.batch_size):
                batch = repeated[start : start + self.batch_size]
                completion_ids += map(list, self.trainer._generate_single_turn(batch, None, {}, 1)[0])
        ends = self.trainer.eos_token_ids
        completions = [Completion(ids, ids[-1] not in ends) for ids in completion_ids]
        return [completions[start : start + num_samples] for start in range(0, len(completions), num_samples)]

    def decode(self, prompts: list, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> list:
        """Return completions as TRL hands them to reward functions: text for text, messages for messages."""
        if not is_conversational({"prompt": prompts[0]}):
            return self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        if any(getattr(self.tokenizer, name, None) is not None for name in ("response_template", "response_schema")):
            pairs = zip(completion_ids, prompt_ids, strict=True)
            return [[parse_response(self.tokenizer, ids, prefix=prefix)] for ids, prefix in pairs]
        contents = self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        return [[{"role": "assistant", "content": content}] for content in contents]

    def exact_text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` with special tokens and white space as they are."""
        return self.trainer._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def plain_text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""
        return self.trainer._tokenizer.decode(ids, skip_special_tokens=True)

    @contextmanager
    def _set(self, settings: dict[str, Any]) -> Iterator[None]:
        """Generate with `settings`, which have transformers' names, while this lasts."""
        engine: Any = self.trainer.vllm_generation if self.trainer.use_vllm else self.trainer
        changes = {} if not settings else self._of_vllm(settings) if self.trainer.use_vllm else self._of_model(settings)
        before = {name: getattr(engine, name) for name in changes}
        try:
            vars(engine).update(changes)
            yield
        finally:
            vars(engine).update(before)

    def _of_vllm(self, settings: dict[str, Any]) -> dict[str, Any]:
        names = {"max_new_tokens": "max_completion_length"}
        changes = {names.get(name, name): value for name, value in settings.items()}
        # The user's own options would overrule these.
        overruled = {*settings, "max_tokens"} if "max_new_tokens" in settings else {*settings}
        options = self.trainer.vllm_generation.generation_kwargs
        return changes | {"generation_kwargs": {key: value for key, value in options.items() if key not in overruled}}

    def _of_model(self, settings: dict[str, Any]) -> dict[str, Any]:
        if settings.get("temperature") == 0:
            settings = settings | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        config = copy.deepcopy(self.trainer.generation_config)
        config.update(**settings)
        return {"generation_config": config, "generation_kwargs": self.trainer.generation_kwargs | settings}


def _settings(sampling: Sampling | None) -> dict[str, Any]:
    """Return what `sampling` sets, by transformers' names."""
    if sampling is None:
        return {}
    settings = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")}
    return settings | {"max_new_tokens": sampling.max_completion_length}
