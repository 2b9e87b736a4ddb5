"""Configuration of the reset trainer: TRL's `GRPOConfig` plus the fields of reset groups."""

from dataclasses import dataclass, field
from typing import Literal

from ..base.config import CreditConfig
from .config_checks import CHECKS


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
        localizer (`"self"`, `"random"`, `"prm"` or `"chat"`, defaults to `"self"`):
            How the reset step is chosen: "self" asks the policy for the first wrong step (SRPO), "random" draws one
            (RRPO), "prm" asks a process reward model and "chat" a judge on a server. A function of your own goes to
            `SRPOTrainer(localizer=...)`.
        localizer_model (`str`, *optional*):
            Model of "prm", a folder or a name on the hub, or of "chat", its name on the server.
        localizer_kwargs (`dict`, *optional*):
            Further arguments of `PRMLocalizer` or `ChatLocalizer`, such as `{"base_url": "http://localhost:8000/v1"}`.
        localization_template (`str`, *optional*):
            What the policy is asked: a text with `{problem}` and `{steps}` or `{completion}`, and `{num_steps}`. None:
            `credit_trl.resets.DEFAULT_TEMPLATE`.
        localization_temperature (`float`, defaults to 0.3):
            Sampling temperature of `localizer="self"` (paper). 0 takes the likeliest answer, as the authors' code does
            for 1x8.
        localization_max_tokens (`int`, *optional*):
            Tokens that `localizer="self"` may use. None: `max_completion_length`, since the paper allows both 4096.
        localization_votes (`int`, defaults to 1):
            Answers of `localizer="self"` for each failure (paper: 1). The step that most of them name is taken, the
            earliest of equals (ours).
        localization_fallback (`"random"` or `"first"`, defaults to `"random"`):
            Where to reset a failure of which no step is named: at any step (ours), or at its first (the authors' code).
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
        train_prefix (`bool`, defaults to False):
            Whether kept prefixes are trained too, with the advantage of what follows them (an ablation of the paper).
        correctness_reward (`str` or `int`, *optional*):
            Name or index of the reward function that says whether a completion failed. None: the first.
        failure_threshold (`float`, defaults to 1.0):
            A completion failed if its correctness reward is below this.

    Raises:
        ValueError: a value out of range, or options of TRL that cannot work, by name; also when the trainer is built.
    """

    _VALID_DICT_FIELDS = [*CreditConfig._VALID_DICT_FIELDS, "localizer_kwargs"]

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
            "help": "Trained continuations of each prefix, which form a group of their own. The other completions of "
            "num_generations are the base group of fresh completions. None: half of num_generations are continuations, "
            "as the paper's 4 of 8 (2605.25507). If num_generations is 2 or 3, all are continuations; the failed "
            "completion is then drawn and not trained."
        },
    )
    step_delimiter: str = field(
        default="\n\n",
        metadata={
            "help": "String that ends a step, or a list of strings in YAML or Python. The paper's is '</thought>' "
            "(2605.25507), which its models are prompted to write. '\\n\\n' is our choice, since models write it by "
            "themselves."
        },
    )
    localizer: Literal["self", "random", "prm", "chat"] = field(
        default="self",
        metadata={
            "help": "How the reset step is chosen: 'self' asks the policy for the first wrong step (SRPO), 'random' "
            "draws one (RRPO), 'prm' asks a process reward model and 'chat' a judge on a server. A function of your "
            "own goes to SRPOTrainer(localizer=...)."
        },
    )
    localizer_model: str | None = field(
        default=None,
        metadata={"help": "Model of localizer='prm' (folder or name on the hub) or 'chat' (its name on the server)."},
    )
    localizer_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Further arguments of PRMLocalizer or ChatLocalizer, as JSON, such as "
            '\'{"base_url": "http://localhost:8000/v1"}\'.'
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
        metadata={
            "help": "Sampling temperature of localizer='self'. 0.3 is the paper's (2605.25507). 0 takes the likeliest "
            "answer, as the authors' code does if all completions continue one prefix."
        },
    )
    localization_max_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Largest number of tokens of an answer of localizer='self'. None: max_completion_length, since the "
            "paper (2605.25507) allows 4096 for both."
        },
    )
    localization_votes: int = field(
        default=1,
        metadata={
            "help": "Answers of localizer='self' for each failure. The step that most answers name is taken; of steps "
            "with equally many votes, the earliest. 1 is the paper's (2605.25507); more than 1 is our addition."
        },
    )
    localization_fallback: Literal["random", "first"] = field(
        default="random",
        metadata={
            "help": "Where to reset a failure if the localizer names no step: at a 'random' step, our choice, or at "
            "its 'first', as the authors' code does."
        },
    )
    reset_offset: int = field(
        default=0, metadata={"help": "Reset this many steps before the step that the localizer names."}
    )
    seed_source: Literal["base", "fresh"] = field(
        default="base",
        metadata={
            "help": "Where the failed completions come from. 'base': from the base group, which costs no generation; "
            "without a base group they are drawn as under 'fresh'. 'fresh': untrained completions are drawn, as in the "
            "paper (2605.25507)."
        },
    )
    seed_selection: Literal["random", "furthest"] = field(
        default="random",
        metadata={
            "help": "Which failed candidates are cut: 'random' ones, as in the paper (2605.25507), or, our addition, "
            "the 'furthest': those whose first error comes latest. For this, every failed candidate is localized."
        },
    )
    max_seed_attempts: int = field(
        default=12,
        metadata={"help": "Untrained completions drawn per prompt to find failures. 12 is the paper's (2605.25507)."},
    )
    train_prefix: bool = field(
        default=False,
        metadata={
            "help": "Train kept prefixes too, with the advantage of their continuation. The paper (2605.25507) does "
            "this in an ablation only."
        },
    )
    correctness_reward: str | None = field(
        default=None,
        metadata={
            "help": "Name or index of the reward function that says whether a completion failed. None: the first."
        },
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
            for check in CHECKS:
                check(self, name)
        except ValueError as error:
            raise ValueError(str(error) if name in str(error) else f"{error}. It is a field of {name}.") from None


RESET_FIELDS = tuple(name for name in SRPOConfig.__annotations__ if name != "loss_type")
