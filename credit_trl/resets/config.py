"""Configuration of the reset trainer: TRL's `GRPOConfig` plus the fields of reset groups."""

import math
from dataclasses import dataclass, field

from ..base.config import CreditConfig, check_choice, check_integer, check_number
from .groups import check_split
from .localization import check_template

# Keys of `generation_kwargs` that would overrule what the phases of a rollout set for themselves.
_OWN_GENERATION_KEYS = (
    "max_new_tokens",
    "max_length",
    "max_tokens",
    "min_new_tokens",
    "min_length",
    "min_tokens",
    "temperature",
    "n",
    "num_return_sequences",
    "structured_outputs",
)

# Keys that count from where generation begins or ends, which for a continuation is not where its completion does.
_POSITIONAL_GENERATION_KEYS = (
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "forced_eos_token_id",
    "frequency_penalty",
    "guidance_scale",
    "presence_penalty",
)


@dataclass
class SRPOConfig(CreditConfig):
    """SRPO, and RRPO with `localizer="random"` (arXiv 2605.25507): part of a prompt's completions restart a failed one.

    All other fields are TRL's and behave as `docs/reference/options.md` says. Options that cannot work raise a
    `ValueError` that names the option, here and again when the trainer is built.

    Changed defaults: `loss_type` is "grpo", the paper's average over each completion. `num_generations=8`, `beta=0.0`
    and `num_iterations=1`, TRL's defaults, are the paper's too.
    """

    loss_type: str = field(
        default="grpo",
        metadata={"help": "TRL's loss types. 'grpo' averages over each completion, as the paper does (2605.25507)."},
    )
    num_reset_prefixes: int = field(
        default=1,
        metadata={
            "help": "Prefixes per prompt, each cut from a failed completion. 1 is the paper's default (2605.25507)."
        },
    )
    suffixes_per_prefix: int = field(
        default=4,
        metadata={
            "help": "Trained continuations of each prefix, which form a group of their own. What is left of "
            "num_generations is the base group of fresh completions. 4 is the paper's default (2605.25507)."
        },
    )
    step_delimiter: str = field(
        default="\n\n",
        metadata={
            "help": "What ends a step; a list of strings in YAML or Python. The paper's is '</thought>' (2605.25507), "
            "which its models are prompted to write; '\\n\\n' is our choice, what models write by themselves."
        },
    )
    localizer: str = field(
        default="self",
        metadata={
            "help": "Who names the first wrong step: 'self', the policy (SRPO), or 'random', nobody: any step (RRPO). "
            "A function of your own goes to SRPOTrainer(localizer=...)."
        },
    )
    localization_template: str | None = field(
        default=None,
        metadata={
            "help": "What the policy is asked: a text with {problem} and {steps} or {completion}, and {num_steps}. "
            "None: credit_trl.resets.DEFAULT_TEMPLATE."
        },
    )
    localization_temperature: float = field(
        default=0.3,
        metadata={"help": "Sampling temperature of localizer='self', above 0. 0.3 is the paper's (2605.25507)."},
    )
    localization_max_tokens: int = field(
        default=4096,
        metadata={"help": "Tokens that localizer='self' may use. 4096 is the paper's (2605.25507)."},
    )
    reset_offset: int = field(
        default=0, metadata={"help": "Reset this many steps before the step that the localizer names."}
    )
    seed_source: str = field(
        default="base",
        metadata={
            "help": "'base': a failed completion of the base group is cut, which costs no generation; without a base "
            "group seeds are drawn anyway. 'fresh': untrained completions are drawn, as the paper does (2605.25507)."
        },
    )
    seed_selection: str = field(
        default="random",
        metadata={
            "help": "Which failed candidates are cut. 'random', the paper's (2605.25507), or 'furthest', our own: "
            "those whose first error comes latest, for which every failed candidate has to be localized."
        },
    )
    max_seed_attempts: int = field(
        default=12,
        metadata={"help": "Untrained completions drawn per prompt to find failures. 12 is the paper's (2605.25507)."},
    )
    correctness_reward: str | None = field(
        default=None,
        metadata={"help": "The reward function that says whether a completion failed: name or index. None: the first."},
    )
    failure_threshold: float = field(
        default=1.0, metadata={"help": "A completion failed if its correctness reward is below this."}
    )

    def check_options(self) -> None:
        super().check_options()
        assert self.num_generations is not None and self.steps_per_generation is not None  # GRPOConfig sets them
        check_integer("num_reset_prefixes", self.num_reset_prefixes)
        check_integer("suffixes_per_prefix", self.suffixes_per_prefix)
        check_split(self.num_generations, self.num_reset_prefixes, self.suffixes_per_prefix)
        if callable(self.localizer):
            raise ValueError("localizer cannot be a function here, since it is saved: SRPOTrainer(localizer=...)")
        check_choice("localizer", self.localizer, ("self", "random"))
        check_choice("seed_source", self.seed_source, ("base", "fresh"))
        check_choice("seed_selection", self.seed_selection, ("random", "furthest"))
        delimiters = [self.step_delimiter] if isinstance(self.step_delimiter, str) else self.step_delimiter
        if (
            not isinstance(delimiters, list | tuple)
            or not delimiters
            or not all(isinstance(one, str) and one for one in delimiters)
        ):
            raise ValueError(
                f"step_delimiter must be a string that is not empty, or a list of them, got {self.step_delimiter!r}. "
                "A function goes to SRPOTrainer(step_delimiter=...)."
            )
        if self.localization_template is not None:
            if not isinstance(self.localization_template, str):
                raise ValueError(f"localization_template must be a string, got {self.localization_template!r}")
            try:
                check_template(self.localization_template)
            except ValueError as error:
                raise ValueError(f"localization_{error}") from None
        check_integer("localization_max_tokens", self.localization_max_tokens, 1)
        check_integer("reset_offset", self.reset_offset, 0)
        check_integer("max_seed_attempts", self.max_seed_attempts, 1)
        if not 0 < check_number("localization_temperature", self.localization_temperature) < math.inf:
            raise ValueError(
                f"localization_temperature must be above 0 and finite, got {self.localization_temperature}"
            )
        check_number("failure_threshold", self.failure_threshold)
        chosen = self.correctness_reward
        if not isinstance(chosen, str | int | None) or isinstance(chosen, bool):
            raise ValueError(
                "correctness_reward must be the name of a reward function, its index, or None for the first, got "
                f"{chosen!r}"
            )
        if self.max_completion_length is None:
            raise ValueError(
                "max_completion_length must be a number: a continuation gets what its prefix leaves of it."
            )
        share = self.per_device_train_batch_size * self.steps_per_generation
        if share % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size={self.per_device_train_batch_size} times steps_per_generation="
                f"{self.steps_per_generation} is a process's share of a generation batch, and must hold whole groups "
                f"of num_generations={self.num_generations}: a prompt's prefixes are cut where its completions are."
            )
        if self.auto_find_batch_size:
            raise ValueError("auto_find_batch_size=True could shrink a process's share to less than whole groups.")
        if self.vllm_structured_outputs_regex is not None:
            raise ValueError(
                "vllm_structured_outputs_regex would be matched against the continuation of a prefix and the "
                "localization on their own, not against whole completions. Leave it out."
            )
        for key in _OWN_GENERATION_KEYS:
            if key in (self.generation_kwargs or {}):
                raise ValueError(
                    f"generation_kwargs has {key!r}, which the phases of a rollout set themselves. Use "
                    "max_completion_length, temperature, localization_max_tokens and localization_temperature."
                )
        if "seed" in (self.generation_kwargs or {}):
            raise ValueError(
                "generation_kwargs has 'seed', with which vLLM gives equal prompts equal completions: those of a group "
                "are asked for one by one, so no group would have a gradient. Leave it out."
            )
        for key in _POSITIONAL_GENERATION_KEYS:
            if key in (self.generation_kwargs or {}):
                raise ValueError(
                    f"generation_kwargs has {key!r}, which takes the start or the end of what is generated for that of "
                    "the completion, and a continuation starts after its prefix. Leave it out."
                )


RESET_FIELDS = tuple(name for name in SRPOConfig.__annotations__ if name != "loss_type")
