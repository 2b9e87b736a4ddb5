"""Reset groups (RRPO and SRPO, arXiv 2605.25507): seeds, reset points and group-wise advantages. No model, no TRL.

A prompt has `num_generations` = G trained completions. Some are fresh, the base group; the others continue a shared
prefix, which is cut from a failed completion (the seed) just before one of its steps (`steps.py`).
`docs/methods/index.md` describes the method.

Shape suffixes: N completions, prompt by prompt; F reward functions; K groups, M rows of the largest group.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Seed(NamedTuple):
    """Name a failed completion that is cut into a prefix."""

    prompt: int  # index in the batch of all processes
    candidate: int  # index among the prompt's candidates
    uniform: float  # number in [0, 1) that chooses the reset step where nothing else does


class Slot(NamedTuple):
    """Place a trained completion in its group."""

    prompt: int  # index in the batch of all processes
    group: int  # number of the group that it is normalized in, unique in that batch
    seed: int | None  # index in `GroupPlan.seeds` of the seed whose prefix it continues; None for a fresh completion


@dataclass(frozen=True)
class GroupPlan:
    """Lay out a batch of P prompts, so that each phase is run once for all prompts.

    1. Base: the first `base_size` slots of every prompt are fresh and are drawn before the plan is made.
    2. Localization: one call for all `seeds`, which are in the order of the prompts.
    3. The slots from `base_size` on of every prompt, each after the prefix of its seed; fresh where it has none.

    `slots` holds all P * G, prompt by prompt, as TRL orders them: a process takes its own slice.
    """

    base_size: int
    seeds: tuple[Seed, ...]
    slots: tuple[Slot, ...]


def check_split(num_generations: int, num_reset_prefixes: int, suffixes_per_prefix: int) -> int:
    """Return the size of the base group: what the continuations of all prefixes leave of `num_generations`.

    Raises:
        ValueError: no reset prefix, a group of one (its advantage would always be 0), or more than fits.
    """
    if num_reset_prefixes < 1:
        raise ValueError(f"num_reset_prefixes must be at least 1, got {num_reset_prefixes}. Without resets use GRPO.")
    if suffixes_per_prefix < 2:
        raise ValueError(
            f"suffixes_per_prefix must be at least 2, got {suffixes_per_prefix}: an advantage is relative to a group."
        )
    base_size = num_generations - num_reset_prefixes * suffixes_per_prefix
    split = f"num_reset_prefixes={num_reset_prefixes} times suffixes_per_prefix={suffixes_per_prefix}"
    if base_size < 0:
        advice = _advice(num_generations, num_reset_prefixes)
        raise ValueError(f"{split} does not fit into num_generations={num_generations}. {advice}")
    if base_size == 1:
        raise ValueError(
            f"{split} leaves a base group of 1 of num_generations={num_generations}, and an advantage is relative to a "
            f"group. {_advice(num_generations, num_reset_prefixes)}"
        )
    return base_size


def split_group(num_generations: int, num_reset_prefixes: int, suffixes_per_prefix: int | None) -> tuple[int, int]:
    """Return the sizes of the base group and of each reset group of a prompt's `num_generations` completions.

    Args:
        suffixes_per_prefix: None lets half of the completions continue a prefix, rounded down to equally many for each
            prefix: 8 with one prefix are 4 and 4, as in the paper; 5 are 3 and 2; 8 with two prefixes are 4, 2 and 2.
            Of 2 or 3, no half of which is a group, all continue one prefix, as in the paper's split 1x8.

    Raises:
        ValueError: fewer than 4 completions for each of several prefixes, or as in `check_split`.
    """
    if suffixes_per_prefix is None and num_reset_prefixes >= 1:
        suffixes_per_prefix = num_generations // 2 // num_reset_prefixes
        if num_reset_prefixes == 1 and num_generations in (2, 3):
            suffixes_per_prefix = num_generations
        elif suffixes_per_prefix < 2:
            raise ValueError(
                f"num_reset_prefixes={num_reset_prefixes} are too many for half of {num_generations=}, since every "
                f"group needs at least 2. {_advice(num_generations, num_reset_prefixes)} Or raise num_generations to "
                f"{4 * num_reset_prefixes}, and with it the batch."
            )
    suffixes = suffixes_per_prefix or 0
    return check_split(num_generations, num_reset_prefixes, suffixes), suffixes


def _advice(num_generations: int, num_reset_prefixes: int) -> str:
    """Return what to set for a split that fits into `num_generations`."""
    continuing = "half of them continue" if num_generations >= 4 else "all of them continue a failed one that is drawn"
    prefixes = "" if num_generations >= 4 * num_reset_prefixes else "num_reset_prefixes=1 and "
    return f"Set {prefixes}suffixes_per_prefix=None, its default, with which {continuing}."


def furthest_failures(
    failed: Sequence[Sequence[bool]], first_errors: Mapping[tuple[int, int], int | None], count: int
) -> list[list[bool]]:
    """Return `failed` without the candidates of a prompt that went wrong earlier than its `count`-th furthest.

    A continuation that starts late has little left to get right. Where right answers are rare, it is the one that
    passes at times, so that its group says anything at all. Where too many candidates share the earliest step that is
    needed, the first of them stay beside those that went further; where none did, all stay, and `plan_groups` draws.

    Args:
        failed: as in `plan_groups`.
        first_errors: 1-based, of every failed candidate (prompt, candidate). Unknown ones, None, count as the earliest.
        count: of seeds that are wanted for each prompt.
    """
    kept = []
    for prompt, outcomes in enumerate(failed):
        reached = [(first_errors[prompt, number] or 0) if failure else -1 for number, failure in enumerate(outcomes)]
        least = sorted(reached, reverse=True)[:count][-1] if reached else 0
        further = sum(step > least for step in reached)
        ties = [number for number, step in enumerate(reached) if step == least]
        chosen = set(ties[: count - further] if further else ties)
        kept.append([failure and (reached[k] > least or k in chosen) for k, failure in enumerate(outcomes)])
    return kept


def plan_groups(
    failed: Sequence[Sequence[bool]],
    *,
    num_generations: int,
    num_reset_prefixes: int,
    suffixes_per_prefix: int,
    seed: int,
    step: int,
) -> GroupPlan:
    """Choose the seeds of every prompt among its failed candidates, and lay out its `num_generations` slots.

    A prompt with fewer than `num_reset_prefixes` failures has no resets: all its slots are fresh and form one group.

    Args:
        failed: for every prompt of the global batch, in order, which of its candidates failed. The candidates are its
            base completions, or untrained ones that were drawn to find a seed; their number may differ by prompt.
        seed: of the run.
        step: of the generation. The choice depends on `seed`, `step`, the prompt's index and its own failures alone,
            so any number of processes that know `failed` make the same plan.

    Raises:
        ValueError: a split that does not fit, see `check_split`.
    """
    base_size = check_split(num_generations, num_reset_prefixes, suffixes_per_prefix)
    seeds: list[Seed] = []
    slots: list[Slot] = []
    for prompt, outcomes in enumerate(failed):
        group = prompt * num_generations
        failures = [candidate for candidate, has_failed in enumerate(outcomes) if has_failed]
        if len(failures) < num_reset_prefixes:
            slots += [Slot(prompt, group, None)] * num_generations
            continue
        draws = random.Random(f"{seed}/{step}/{prompt}")  # hashed as text, the same in every process
        slots += [Slot(prompt, group, None)] * base_size
        for number, candidate in enumerate(draws.sample(failures, num_reset_prefixes), start=1):
            slots += [Slot(prompt, group + number, len(seeds))] * suffixes_per_prefix
            seeds.append(Seed(prompt, candidate, draws.random()))
    return GroupPlan(base_size, tuple(seeds), tuple(slots))
