"""Configuration of the reset trainer: TRL's `GRPOConfig` plus the fields of reset groups."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ..base.config import CreditConfig, check_choice, check_integer, check_number
from .generation_kwargs import check_generation_kwargs
from .groups import split_group
from .localization import check_template


@dataclass
class SRPOConfig(CreditConfig):
    """Configure SRPO, and RRPO with `localizer="random"` (arXiv 2605.25507).

    Part of a prompt's completions restart a failed one at one of its steps. All fields that are not listed are TRL's
    and behave as `docs/reference/options.md` says. Defaults that are marked "paper" are the paper's.

    Args:
        loss_type (`str`, defaults to `"grpo"`):
            TRL's loss types. "grpo" averages over each completion (paper); TRL's own default is "dapo".
        num_reset_prefixes (`int`, defaults to 1):
            Prefixes of each prompt (paper), each cut from a failed completion.
        suffixes_per_prefix (`int`, *optional*):
            Trained continuations of each prefix, which form a group of their own. What is left of `num_generations` is
            the base group of fresh completions. None lets half of `num_generations` continue, equally many for each
            prefix: 4 of 8 (paper). Of 2 or 3 all continue, and the failed completion is drawn and not trained.
        step_delimiter (`str`, defaults to two newlines):
            What ends a step; a list of strings in YAML or Python. The paper's is `</thought>`, which its models are
            prompted to write; ours is what models write by themselves.
        localizer (`"self"` or `"random"`, defaults to `"self"`):
            How the reset step is chosen: "self" asks the policy for the first wrong step (SRPO), "random" draws one
            (RRPO). A function of your own goes to `SRPOTrainer(localizer=...)`.
        localization_template (`str`, *optional*):
            What the policy is asked: a text with `{problem}` and `{steps}` or `{completion}`, and `{num_steps}`. None:
            `credit_trl.resets.DEFAULT_TEMPLATE`.
        localization_temperature (`float`, defaults to 0.3):
            Sampling temperature of `localizer="self"` (paper), above 0.
        localization_max_tokens (`int`, *optional*):
            Tokens that `localizer="self"` may use. None: `max_completion_length`, since the paper allows both 4096.
        reset_offset (`int`, defaults to 0):
            Steps to reset before the step that the localizer names.
        seed_source (`"base"` or `"fresh"`, defaults to `"base"`):
            "base" cuts a failed completion of the base group, which costs no generation; without a base group seeds
            are drawn anyway. "fresh" draws untrained completions (paper).
        seed_selection (`"random"` or `"furthest"`, defaults to `"random"`):
            Which failed candidates are cut: any (paper), or (ours) those whose first error comes latest, for which
            every failed candidate has to be localized.
        max_seed_attempts (`int`, defaults to 12):
            Untrained completions that may be drawn for each prompt to find failures (paper).
        correctness_reward (`str` or `int`, *optional*):
            Name or index of the reward function that says whether a completion failed. None: the first.
        failure_threshold (`float`, defaults to 1.0):
            A completion failed if its correctness reward is below this.

    Raises:
        ValueError: a value out of range, or options of TRL that cannot work, by name; also when the trainer is built.
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
    suffixes_per_prefix: int | None = field(
        default=None,
        metadata={
            "help": "Trained continuations of each prefix, which form a group of their own. What is left of "
            "num_generations is the base group of fresh completions. None: half of num_generations continues, of 8 the "
            "paper's 4 (2605.25507). Of 2 or 3 all continue, and the failed completion is drawn and not trained."
        },
    )
    step_delimiter: str = field(
        default="\n\n",
        metadata={
            "help": "What ends a step; a list of strings in YAML or Python. The paper's is '</thought>' (2605.25507), "
            "which its models are prompted to write; '\\n\\n' is our choice, what models write by themselves."
        },
    )
    localizer: Literal["self", "random"] = field(
        default="self",
        metadata={
            "help": "How the reset step is chosen: 'self' asks the policy for the first wrong step (SRPO), 'random' "
            "draws one (RRPO). A function of your own goes to SRPOTrainer(localizer=...)."
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
    localization_max_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that localizer='self' may use. None: max_completion_length, since the paper (2605.25507) "
            "allows both 4096."
        },
    )
    reset_offset: int = field(
        default=0, metadata={"help": "Reset this many steps before the step that the localizer names."}
    )
    seed_source: Literal["base", "fresh"] = field(
        default="base",
        metadata={
            "help": "'base': a failed completion of the base group is cut, which costs no generation; without a base "
            "group seeds are drawn anyway. 'fresh': untrained completions are drawn, as the paper does (2605.25507)."
        },
    )
    seed_selection: Literal["random", "furthest"] = field(
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

    @property
    def localization_tokens(self) -> int:
        """Return how many tokens a localization may have."""
        return self.localization_max_tokens or self.max_completion_length  # type: ignore[return-value]  # checked below

    def check_options(self) -> None:
        super().check_options()
        name = SRPOConfig.__name__
        try:
            self._check_groups(name)
            self._check_localization()
            self._check_seeds()
            self._check_generation(name)
        except ValueError as error:
            raise ValueError(str(error) if name in str(error) else f"{error}. It is a field of {name}.") from None

    def _check_groups(self, name: str) -> None:
        assert self.num_generations is not None and self.steps_per_generation is not None  # GRPOConfig sets them
        check_integer("num_reset_prefixes", self.num_reset_prefixes)
        if self.suffixes_per_prefix is not None:
            check_integer("suffixes_per_prefix", self.suffixes_per_prefix)
        try:
            split_group(self.num_generations, self.num_reset_prefixes, self.suffixes_per_prefix)
        except ValueError as error:
            raise ValueError(f"{error} These are fields of {name}, which has all of GRPOConfig's.") from None
        size, steps = self.per_device_train_batch_size, self.steps_per_generation
        if size * steps % self.num_generations:
            fewest = self.num_generations // math.gcd(size, self.num_generations)
            enough = -(-self.gradient_accumulation_steps // fewest) * fewest
            raise ValueError(
                f"per_device_train_batch_size={size} times steps_per_generation={steps} is a process's share of a "
                f"generation batch, and must hold whole groups of num_generations={self.num_generations}: a prompt's "
                f"prefixes are cut where its completions are. Set gradient_accumulation_steps={enough} in {name} and "
                "leave out steps_per_generation and generation_batch_size, which follow it."
            )

    def _check_localization(self) -> None:
        if callable(self.localizer):
            raise ValueError("localizer cannot be a function here, since it is saved: SRPOTrainer(localizer=...)")
        check_choice("localizer", self.localizer, ("self", "random"))
        delimiters = [self.step_delimiter] if isinstance(self.step_delimiter, str) else self.step_delimiter
        if (
            not isinstance(delimiters, list | tuple)
            or not delimiters
            or not all(isinstance(delimiter, str) and delimiter for delimiter in delimiters)
        ):
            raise ValueError(
                f"step_delimiter must be a string that is not empty, or a list of them, got {self.step_delimiter!r}. "
                "A function goes to SRPOTrainer(step_delimiter=...)"
            )
        if self.localization_template is not None:
            if not isinstance(self.localization_template, str):
                raise ValueError(f"localization_template must be a string, got {self.localization_template!r}")
            try:
                check_template(self.localization_template)
            except ValueError as error:
                raise ValueError(f"localization_{error}") from None
        if self.localization_max_tokens is not None:
            check_integer("localization_max_tokens", self.localization_max_tokens, 1)
        if not 0 < check_number("localization_temperature", self.localization_temperature) < math.inf:
            raise ValueError(
                f"localization_temperature must be above 0 and finite, got {self.localization_temperature}"
            )
        check_integer("reset_offset", self.reset_offset, 0)

    def _check_seeds(self) -> None:
        check_choice("seed_source", self.seed_source, ("base", "fresh"))
        check_choice("seed_selection", self.seed_selection, ("random", "furthest"))
        check_integer("max_seed_attempts", self.max_seed_attempts, 1)
        check_number("failure_threshold", self.failure_threshold)
        chosen = self.correctness_reward
        if not isinstance(chosen, str | int | None) or isinstance(chosen, bool):
            raise ValueError(
                "correctness_reward must be the name of a reward function, its index, or None for the first, got "
                f"{chosen!r}"
            )

    def _check_generation(self, name: str) -> None:
        if self.max_completion_length is None:
            raise ValueError(
                "max_completion_length must be a number: a continuation gets what its prefix leaves of it. Set "
                f"max_completion_length=256, which is TRL's default, or more in {name}."
            )
        if self.vllm_structured_outputs_regex is not None:
            raise ValueError(
                "vllm_structured_outputs_regex would be matched against the continuation of a prefix and the "
                f"localization on their own, not against whole completions. Leave it out of {name}."
            )
        check_generation_kwargs(self.generation_kwargs or {}, name)


RESET_FIELDS = tuple(name for name in SRPOConfig.__annotations__ if name != "loss_type")
