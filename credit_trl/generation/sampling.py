"""Sample from a transformers model in memory, beside whatever else the process does with it."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model, set_seed
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[list[int]],
    max_completion_length: int,
    sampling: dict[str, Any],
) -> list[list[int]]:
    """Sample one completion for each of `prompt_ids`, up to and with the token that ended it.

    `sampling` holds options of `model.generate`. Without any, tokens come from the model's own distribution: the
    penalties, filters and forbidden tokens of its generation config are not applied.
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
    """Let `model.generate` read `config` alone: it fills in options from the model's config even if given another."""
    base = model.get_base_model() if is_peft_model(model) else model  # type: ignore[operator]  # PEFT's models have it
    before = base.generation_config
    base.generation_config = config
    try:
        yield
    finally:
        base.generation_config = before


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end a completion, as in TRL: the generation config's and the tokenizer's EOS."""
    ids = model.generation_config.eos_token_id  # type: ignore[union-attr]  # every model that generates has one
    candidates = (*(ids if isinstance(ids, list) else [ids]), tokenizer.eos_token_id)
    return {token for token in candidates if token is not None}


@contextmanager
def own_random_state(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Evaluate `model` with a random state of its own: no gradients, and mode and random states are put back."""
    training = model.training
    with kept_random_state(seed), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(training)


@contextmanager
def kept_random_state(seed: int) -> Iterator[None]:
    """Draw from random states that start at `seed`; those of Python, NumPy and torch are put back at the end."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
