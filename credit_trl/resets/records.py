"""Record what happened in a rollout, as plain values for metrics, the table of completions and pictures."""

import math
from typing import NamedTuple

from ..generation.samples import Sample
from .reset_step import Fallback, Reset, choose_reset
from .steps import Step


class SeedRecord(NamedTuple):
    """Record a failed completion that was cut."""

    steps: tuple[str, ...]  # texts of its steps
    first_error: int | None  # 1-based step that the localizer named; None where it named none
    reset: Reset  # place where it was cut


class Localized(NamedTuple):
    """Hold a failed completion whose first error was asked for."""

    sample: Sample
    steps: list[Step]
    first_error: int | None  # 1-based step; None where the localizer named none

    def cut(self, uniform: float, reset_offset: int, fallback: Fallback) -> tuple[SeedRecord, Sample]:
        """Return where it is cut, as `choose_reset` says, and the prefix that is kept."""
        reset = choose_reset(
            self.first_error, len(self.steps), uniform=uniform, reset_offset=reset_offset, fallback=fallback
        )
        prefix = self.sample.first(self.steps[reset.step - 1].start if self.steps else 0)
        return SeedRecord(tuple(step.text for step in self.steps), self.first_error, reset), prefix


class CompletionRecord(NamedTuple):
    """Record what became of a trained completion."""

    prompt: int  # index of its prompt in the batch of all processes
    group: int  # number of the group that it is normalized in, unique in that batch
    role: str  # "base", "reset" (continues a prefix) or "fresh" (any other)
    prompt_ids: list[int]
    ids: list[int]  # token ids, with the prefix
    prefix_length: int  # tokens of `ids` that were kept from the seed
    reward: float  # reward by the function that says what failed; NaN where it gave none
    passed: bool | None  # correctness; None where it was not scored
    seed: SeedRecord | None  # failed completion whose prefix it continues
    advantage: float = math.nan  # advantage in its group
    trains_prefix: bool = False  # whether the prefix is in the loss

    @property
    def loss_mask(self) -> list[int]:
        """Return 1 for each trained token and 0 for each other one, which are those of a prefix that was kept."""
        masked = 0 if self.trains_prefix else self.prefix_length
        return [0] * masked + [1] * (len(self.ids) - masked)

    def without_tokens(self) -> "CompletionRecord":
        """Return the record without token ids, as other processes need to know it."""
        return self._replace(prompt_ids=[], ids=[])
