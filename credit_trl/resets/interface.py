"""Define what a rollout asks of others: an engine, which samples, and a function, which scores."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from ..generation.samples import Sample


class RolloutEngine(Protocol):
    """Sample, and turn texts into token ids and back, as `TrainerEngine` does."""

    @property
    def end_ids(self) -> Collection[int]: ...

    @property
    def has_chat_template(self) -> bool: ...

    def token_ids(self, prompts: list) -> list[list[int]]: ...

    def complete(
        self, prompts: list, prompt_ids: list[list[int]], max_tokens: int, temperature: float | None = None
    ) -> list[Sample]: ...

    def exact_text(self, ids: Sequence[int]) -> str: ...

    def plain_text(self, ids: Sequence[int]) -> str: ...


class Scores(NamedTuple):
    """Hold what the reward functions said."""

    rewards: torch.Tensor  # (rows of all processes, functions), NaN where a function did not score
    columns: dict[
        str, list
    ]  # values that they logged for the table of completions, one for each of this process's rows
    metrics: dict[str, list[float]]  # values that they logged as metrics on this process, by name


Score = Callable[[list[dict[str, Any]], list[list[int]], list[list[int]]], Scores]
"""Score rows of the data, which have a column `completion_role`, given the ids of their prompts and completions."""
