"""A tiny random model on disk, a reward, and what every training run in the tests wants of TRL's settings."""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from scripts.pretrain_testbed import build_tokenizer

# What every training run in the tests wants of TRL's and the Trainer's settings.
QUIET_ON_CPU = dict(
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    disable_tqdm=True,
)


def save_random_model(path: str, **sizes: int) -> str:
    """Write a random Qwen3 of these sizes with the testbed's tokenizer to `path`, and return it."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            intermediate_size=64,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.3,  # peaked enough that entropies and ratios differ between tokens
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            **sizes,
        )
    ).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def digit_reward(completions: list[str], **kwargs) -> list[float]:
    """Any function of the text will do, as long as it differs between completions."""
    return [sum(character in "02468" for character in text) / 8 for text in completions]
