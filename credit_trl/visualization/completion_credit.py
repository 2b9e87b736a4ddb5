"""Hold the credit of one completion, as the pictures draw it."""

import math
from typing import NamedTuple


class CompletionCredit(NamedTuple):
    """Hold a completion of the last loss of a step: its T tokens without padding, and what each of them received."""

    prompt: str
    tokens: list[str]
    credit: list[float]  # negative gradient of the loss, over its root mean square over the loss tokens
    mask: list[bool]  # True for tokens in the loss
    logps: list[float]  # log-probabilities by the policy, nats
    entropies: list[float]  # entropies of the policy, nats
    advantage: float


def full_color(completions: list[CompletionCredit]) -> float:
    """Return the largest finite size of a credit of several completions, which are drawn on one scale."""
    pairs = (pair for completion in completions for pair in zip(completion.credit, completion.mask, strict=True))
    return max(filter(math.isfinite, (abs(value) for value, counted in pairs if counted)), default=0.0)
