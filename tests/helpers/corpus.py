"""The corpus of public GRPO scripts: its settings on a CPU, its data and rewards, and the table of the docs.

python -m tests.helpers.corpus        # write the table of docs/guides/migration.md anew
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig

from tests.helpers.training import QUIET_ON_CPU, digit_reward
from tests.helpers.vision import NO_IMAGE_TOKENS, seen_data

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "migration.md"
MARKS = ("<!-- corpus -->\n", "<!-- end of corpus -->\n")
CORPUS: list[dict] = yaml.safe_load((ROOT / "tests" / "contract" / "corpus.yaml").read_text())
NAMES = [entry["name"] for entry in CORPUS]
TRACES, RESETS = ("S-trace", "GRPO-lambda"), ("SRPO", "RRPO")

# Options of earlier releases. The value is today's name, or None for an option that is gone without a successor.
RENAMED: dict[str, str | None] = {
    "evaluation_strategy": "eval_strategy",
    "max_prompt_length": None,  # TRL 1 leaves it to the caller to cut or drop long prompts
    "overwrite_output_dir": None,  # transformers 5 resumes only where it is told to
    "vllm_device": None,  # TRL 0.16 replaced it by a server, TRL 0.18 by vllm_mode="colocate"
    "vllm_enforce_eager": None,
    "vllm_max_model_len": "vllm_max_model_length",
    "vllm_sampling_params": None,  # a field of Unsloth's config, never of TRL's
    "warmup_ratio": "warmup_steps",  # transformers 5 reads a number below 1 as a ratio
}
# Options that ask for a GPU, a service, a download or a long run. The value is what they become here, None is left out.
ON_CPU: dict[str, Any] = {
    "bf16": False,
    "fp16": False,
    "tf32": None,
    "use_vllm": None,
    "use_liger_kernel": None,
    "use_transformers_continuous_batching": None,
    "transformers_continuous_batching_config": None,
    "deepspeed": None,
    "torch_compile": None,
    "optim": "adamw_torch",  # for the 8-bit, paged and fused ones
    "model_init_kwargs": None,  # types and attention kernels
    "dataloader_num_workers": None,
    "dataloader_prefetch_factor": None,
    "dataloader_pin_memory": None,
    "report_to": "none",
    "push_to_hub": False,
    "log_completions": False,  # prints a table for each step
    "logging_steps": 1,
    "log_level": None,
    "save_strategy": "no",
    "save_steps": None,
    "save_total_limit": None,
    "save_only_model": None,
    "do_eval": None,
    "eval_strategy": "no",
    "eval_steps": None,
    "num_train_epochs": None,
    "warmup_steps": None,  # a rate of 0 in the only step
    "lr_scheduler_type": None,
    "lr_scheduler_kwargs": None,
}
# Options that say nothing about credit. Entries that differ in these alone are trained once.
NEUTRAL = {
    *("adam_beta1", "adam_beta2", "adam_epsilon", "learning_rate", "max_grad_norm", "optim", "weight_decay"),
    *("gradient_checkpointing_kwargs", "log_on_each_node", "logging_first_step", "logging_strategy"),
    *("ddp_find_unused_parameters", "per_device_eval_batch_size", "seed", "max_completion_length"),
}
LONGEST = 24  # tokens of a completion


def today(settings: dict) -> dict:
    """Return `settings` under the names that TRL 1.16 and transformers 5 have for them."""
    renamed = {RENAMED.get(name, name): value for name, value in settings.items()}
    return {name: value for name, value in renamed.items() if name is not None}


def sizes(settings: dict) -> dict[str, int]:
    """Return the smallest batch that holds whole groups and keeps the entry's optimizer steps for each rollout.

    A script for several GPUs, or one that relies on Unsloth to raise its batch, has too few rows for one process here.
    """
    default = GRPOConfig.__dataclass_fields__["num_generations"].default
    group, accumulation = settings.get("num_generations", default), settings.get("gradient_accumulation_steps", 1)
    every = settings.get("steps_per_generation", accumulation)
    common = gcd(every, accumulation)
    every, accumulation = every // common, accumulation // common
    if settings.get("gradient_accumulation_steps", 1) > 1 and accumulation == every == 1:
        every = accumulation = 2
    return dict(
        per_device_train_batch_size=group // gcd(group, every),
        gradient_accumulation_steps=accumulation,
        steps_per_generation=every,
    )


def on_cpu(entry: dict) -> dict:
    """Return what to give `GRPOConfig` for one optimizer step of the entry on a CPU, all that concerns credit kept."""
    settings = today(entry["settings"])
    kept = {name: ON_CPU.get(name, value) for name, value in settings.items() if not name.startswith("vllm_")}
    kept = {name: value for name, value in kept.items() if value is not None and name != "generation_batch_size"}
    length = min(settings.get("max_completion_length", LONGEST), LONGEST)
    seen = NO_IMAGE_TOKENS if passed(entry).get("images") else {}
    return QUIET_ON_CPU | kept | seen | sizes(settings) | dict(max_completion_length=length, max_steps=1, use_cpu=True)


def passed(entry: dict) -> dict:
    """Return what the entry passes to the trainer, with the defaults of the corpus filled in."""
    return dict(prompts="text", columns=[], rewards=1, callbacks=0) | entry.get("trainer", {})


def features(entry: dict) -> set[str]:
    """Return what of the entry can matter for credit: each option with its value, each kind of argument, as texts."""
    settings = [f"{name}={value}" for name, value in on_cpu(entry).items() if name not in NEUTRAL]
    kinds = [f"{name}={value}" for name, value in passed(entry).items() if name not in ("columns", "eval")]
    return {*settings, *kinds}


def covering() -> list[str]:
    """Return the names of few entries that have every feature of the corpus between them, the richest first."""
    left, chosen = set().union(*map(features, CORPUS)), []
    while left:
        entry = max(CORPUS, key=lambda entry: len(features(entry) & left))
        left -= features(entry)
        chosen.append(entry["name"])
    return chosen


# --- what a script brings along ---


class Environment:
    """Play an environment of one tool for `environment_factory`."""

    def reset(self, **kwargs) -> None:
        return None

    def look(self) -> str:
        """Look around."""
        return ""


def look() -> str:
    """Look around."""
    return ""


class Noticing(TrainerCallback):
    """Play a script's own callback."""


@dataclass
class ScriptConfig(GRPOConfig):
    """Play a script's own subclass of `GRPOConfig`."""

    request_path: str | None = None


def rollout(prompts: list, trainer) -> dict[str, list]:
    """Play a `rollout_func`: two made-up tokens for each prompt, and the reward that its environment gave."""
    rows = range(len(prompts))
    return {
        "prompt_ids": [trainer.processing_class(prompt)["input_ids"] for prompt in prompts],
        "completion_ids": [[10 + row % 5, 1] for row in rows],
        "logprobs": [[-1.0, -1.0] for _ in rows],
        "env_reward": [float(row % 3) for row in rows],
    }


def make_reward(index: int, columns: list[str]) -> Callable:
    """Return a reward function that wants the columns of the entry for each completion, as its script's would."""

    def reward(prompts, completions, **given) -> list[float]:
        assert all(len(given[name]) == len(completions) == len(prompts) for name in columns)
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        return [(index + 1) * score for score in digit_reward(texts)]

    reward.__name__ = f"reward_{index}"
    return reward


def make_data(entry: dict) -> Dataset:
    prompts: list = ["1+2:", "3*4-5:", "16-0+7:", "9*9:"]
    if passed(entry)["prompts"] == "chat":
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    columns = {name: [str(row) for row in range(4)] for name in passed(entry)["columns"] if name != "env_reward"}
    if passed(entry).get("images"):
        return seen_data(**columns)
    return Dataset.from_dict({"prompt": prompts} | columns)


def make_tokenizer(model: str, entry: dict) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer with a chat template; for tools one whose calls TRL can read."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    if passed(entry).get("tools") or passed(entry).get("environment_factory"):
        import trl

        tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    return tokenizer


# --- what is refused, and the table of the docs ---


@dataclass(frozen=True)
class Refusal:
    """One kind of refusal: by whom, of which entries, with which first word of the message, and why."""

    trainers: tuple[str, ...]
    matches: Callable[[dict], bool]
    starts: str
    reason: str


def _passes(name: str) -> Callable[[dict], bool]:
    return lambda entry: bool(passed(entry).get(name))


REFUSALS = [
    Refusal(RESETS, _passes("tools"), "tools", "what tools did cannot be taken back"),
    Refusal(RESETS, _passes("rollout_func"), "rollout_func", "a prefix cannot be resumed inside another rollout"),
    Refusal(RESETS, _passes("environment_factory"), "environment_factory", "what it did cannot be taken back"),
]


def refusals(trainer: str, entry: dict) -> list[Refusal]:
    """Return why `trainer` refuses the entry, in the order in which it says so; nothing where it trains."""
    return [kind for kind in REFUSALS if trainer in kind.trainers and kind.matches(entry)]


# Options that the table shows, beside `num_generations`, where they are not TRL's defaults.
SHOWN = (
    *(
        "beta",
        "loss_type",
        "scale_rewards",
        "epsilon",
        "epsilon_high",
        "delta",
        "num_iterations",
        "steps_per_generation",
    ),
    *("importance_sampling_level", "mask_truncated_completions", "reward_weights", "temperature", "top_p", "top_k"),
    *("top_entropy_quantile", "use_bias_correction_kl", "vllm_mode", "vllm_importance_sampling_mode"),
)
KINDS = ("images", "tools", "rollout_func", "environment_factory", "config_subclass", "peft")


def _row(entry: dict) -> str:
    settings = entry["settings"]
    fields = GRPOConfig.__dataclass_fields__
    shown = [
        f"{name}={settings[name]}" for name in SHOWN if name in settings and settings[name] != fields[name].default
    ]
    if "num_generations" in settings:
        shown.insert(0, f"num_generations={settings['num_generations']}")
    shown = [f"`{one}`" for one in shown]
    shown += [{"peft": "adapter", "config_subclass": "a subclass of the config"}.get(kind, f"`{kind}`")
              for kind in KINDS if passed(entry).get(kind)]  # fmt: skip
    cells = [", ".join(f"`{kind.starts}`" for kind in refusals(name, entry)) or "yes" for name in (*TRACES, RESETS[0])]
    origin = entry["source"]
    if "://" in origin:
        origin = f"<{origin}>"
    if entry.get("drawn"):
        origin += " (drawn)"
    return f"| {origin} | {', '.join(shown) or 'defaults'} | {' | '.join(cells)} |"


def table() -> Iterator[str]:
    """Yield the lines of the docs' table: what each script sets and what becomes of it, then the shares that train."""
    names = (*TRACES, RESETS[0])
    yield f"| script | what it sets that matters | {' | '.join(names)} |"
    yield "|---|---|---|---|---|"
    yield from map(_row, CORPUS)
    drawn = [entry for entry in CORPUS if entry.get("drawn")]
    rollouts = ("images", "tools", "rollout_func", "environment_factory")
    plain = [entry for entry in CORPUS if not any(passed(entry).get(name) for name in rollouts)]
    sums = (("all", CORPUS), ("those that were drawn", drawn), ("those with text and TRL's own rollout", plain))
    for what, entries in sums:
        counts = [sum(not refusals(name, entry) for entry in entries) for name in names]
        shares = " | ".join(f"{count} ({count / len(entries):.0%})" for count in counts)
        yield f"| **{what}: {len(entries)}** | train | {shares} |"


def with_table(page: str) -> str:
    """Return the page with the table between its two marks made anew."""
    before, rest = page.split(MARKS[0])
    return "\n".join([before + MARKS[0], *table(), "", MARKS[1] + rest.split(MARKS[1])[1]])


def main() -> None:
    PAGE.write_text(with_table(PAGE.read_text()))


if __name__ == "__main__":
    main()
