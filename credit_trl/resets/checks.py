"""What `SRPOTrainer` makes sure of: whose columns are whose, what says what failed, and that resets are trained."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from trl import GRPOTrainer

from ..base.foreign_code import whose_code
from .config import SRPOConfig
from .groups import split_group
from .localization import Localizer
from .records import CompletionRecord
from .steps import Delimiter

# Fields of the question to the policy, of which a judge reads the first.
_QUESTION = ["localization_template", "localization_temperature", "localization_max_tokens"]

ROLE, STEP = "completion_role", "reset_step"  # columns that the trainer makes

REFUSED = (
    "{} cannot work with reset groups, which are a rollout of their own: a prefix cannot be resumed inside another "
    "rollout, nor what tools or an environment did be taken back. Leave it out of SRPOTrainer."
)

LOST_MASK = (
    "The batch came to the loss without 'tool_mask', so that kept prefixes would be trained like what was sampled "
    "after them. SRPOTrainer gave it to every batch: what stands between `_generate_and_score_completions` and "
    "`_compute_loss` has to hand on all keys of a batch."
)


def refuse_arguments(given: Mapping[str, Any]) -> None:
    """Raise `ValueError` for an argument of `GRPOTrainer`, by its name, that would sample by other means."""
    for name in ("rollout_func", "tools", "environment_factory"):
        if given.get(name):
            raise ValueError(REFUSED.format(name))


def refuse_unread(args: SRPOConfig, localizer: str | Localizer, step_delimiter: Delimiter | None) -> None:
    """Raise `ValueError` for a field that would not be read.

    Args:
        args: the configuration.
        localizer: the trainer's function, or the name in `args` where it was given none.
        step_delimiter: the trainer's function, or None.
    """
    for name, argument, replaced in (
        ("localizer_model", "localizer", callable(localizer)),
        ("step_delimiter", "step_delimiter", step_delimiter is not None),
    ):
        if replaced and getattr(args, name) != getattr(SRPOConfig, name):
            raise ValueError(
                f"{name}={getattr(args, name)!r} would not be used, since SRPOTrainer({argument}=...) has a function. "
                f"Leave out the function, or {name} of SRPOConfig."
            )
    if localizer == "random":
        if args.seed_selection == "furthest":
            raise ValueError(
                "seed_selection='furthest' needs to know the first error of every failed completion, and localizer="
                "'random' names none. Set seed_selection='random' or localizer='self' in SRPOConfig, or give "
                "SRPOTrainer(localizer=...) a function."
            )
        if args.localization_fallback == "first":
            raise ValueError(
                "localization_fallback='first' would reset every completion to its first step, since localizer="
                "'random' names none. Set localization_fallback='random' or localizer='self' in SRPOConfig."
            )
    if localizer != "self" and args.localization_votes > 1:
        asked = "'random'" if localizer == "random" else "a function or model of its own"
        raise ValueError(
            f"localization_votes={args.localization_votes} counts answers of the policy, and localizer is {asked}. Set "
            "localization_votes=1 or localizer='self' in SRPOConfig."
        )


def refuse_column(name: str, names: Iterable[str], owner: str) -> None:
    """Raise `ValueError` if `name`, a column that the trainer makes, is among the `names` that `owner` has."""
    if name in names:
        raise ValueError(f"{name} is a column that SRPOTrainer makes, and {owner} has one too: rename it there.")


def column_names(trainer: GRPOTrainer) -> set[str]:
    """Return the columns of the data sets of a trainer, which may have several to evaluate on, where they are known."""
    evaluation = trainer.eval_dataset
    data = [trainer.train_dataset, *(evaluation.values() if isinstance(evaluation, dict) else [evaluation])]
    return {name for rows in data for name in getattr(rows, "column_names", None) or []}


def _unread(args: SRPOConfig, localizer: str | Localizer, base_size: int) -> Iterator[tuple[list[str], str]]:
    """Yield fields that are not read, which a recipe may set for all localizers, and why they are not."""
    if localizer == "chat":
        yield _QUESTION[1:], "they are for the policy's answers. Those of the judge are in localizer_kwargs."
    elif localizer != "self":
        yield _QUESTION, "localizer='self' alone asks the policy a question."
    if callable(localizer):
        yield ["localizer"], "SRPOTrainer(localizer=...) takes its place."
    if localizer == "random":
        yield ["reset_offset"], "localizer='random' names no step from which to count."
    if base_size and args.seed_source == "base":
        yield ["max_seed_attempts"], "under seed_source='base' no completions are drawn beside the base group."


def notices(functions: Mapping[str, Any], args: SRPOConfig, localizer: str | Localizer) -> Iterator[str]:
    """Yield what is to be said of a configuration and its reward functions, given by name, when a trainer is built."""
    G: int = args.num_generations  # type: ignore[assignment]  # GRPOConfig sets it
    base_size, _ = split_group(G, args.num_reset_prefixes, args.suffixes_per_prefix)
    for fields, reason in _unread(args, localizer, base_size):
        if changed := [name for name in fields if getattr(args, name) != getattr(SRPOConfig, name)]:
            yield f"SRPOTrainer will not read {', '.join(changed)} of SRPOConfig: {reason}"
    if base_size == 0 and args.suffixes_per_prefix is None:
        yield (
            f"num_generations={G} is too few for two groups: all completions of a prompt continue a failed one, which "
            f"is drawn (up to max_seed_attempts={args.max_seed_attempts} for each prompt) and not trained. With 4 or "
            "more, half of them are fresh, and failed ones among those are cut."
        )
    # Those of this package and of TRL, and reward models, look at one completion at a time.
    names = [
        name
        for name, function in functions.items()
        if not isinstance(function, torch.nn.Module)
        and str(getattr(function, "__module__", "")).split(".")[0] not in ("credit_trl", "trl")
    ]
    if names:
        calls = [f"for {base_size} completions of each prompt, which stand side by side"] * (base_size > 0)
        if not base_size or args.seed_source == "fresh":
            calls.append(f"for one drawn completion of each prompt, up to {args.max_seed_attempts} times")
        yield (
            f"Reward functions are called several times for a batch: {', '.join(calls)}, and after the resets for "
            f"{f'the other {G - base_size}' if base_size else G}. If {', '.join(names)} compares the completions of a "
            f"prompt, group them by `prompts`: to slice by num_generations={G} would mix prompts."
        )


def check_rolled_out(trainer: GRPOTrainer, records: list[CompletionRecord]) -> None:
    """Raise `RuntimeError` if no rollout with reset groups was made where one was due."""
    if not records:
        raise RuntimeError(
            "TRL sampled this batch without calling the rollout with reset groups: it would have been trained as plain "
            f"GRPO. {whose_code(trainer, ('_generate_and_score_completions', '_generate'))}"
        )


def check_mask(records: list[CompletionRecord], tool_mask: torch.Tensor | None) -> None:
    """Raise `RuntimeError` if a token of a kept prefix would be trained; `tool_mask` is (completions, tokens)."""
    if tool_mask is None:
        raise RuntimeError(LOST_MASK)
    lengths = torch.tensor([record.loss_mask.count(0) for record in records])
    in_prefix = torch.arange(tool_mask.shape[1]) < lengths.unsqueeze(1)
    if (in_prefix & tool_mask.cpu().bool()).any():
        raise RuntimeError(
            "The 'tool_mask' of the batch is not the one that SRPOTrainer gave to TRL: tokens of kept prefixes would "
            "be trained. What stands between `_generate` and the loss has to leave it as it is."
        )


def correctness_index(names: list[str], chosen: str | int | None) -> int:
    """Return the index of the reward function that `correctness_reward` means.

    Raises:
        ValueError: no such function, or several of that name, as lambdas and partial functions may have.
    """
    if isinstance(chosen, str) and chosen not in names and re.fullmatch("-?[0-9]+", chosen):
        chosen = int(chosen)  # from a command line, where every value is text
    if chosen is None:
        chosen = 0
    if isinstance(chosen, int) and -len(names) <= chosen < len(names):
        return chosen
    if chosen not in names:
        raise ValueError(f"correctness_reward must be one of {names} or an index of them, got {chosen!r}")
    if names.count(chosen) > 1:
        raise ValueError(f"correctness_reward={chosen!r} is the name of several of {names}: give the index of one")
    return names.index(chosen)
