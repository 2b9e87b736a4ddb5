"""Apply the token trust region: keep every token's factor in its own bounds before it enters a trace. Torch only.

Shape suffixes: B completions, T completion tokens (padded).
"""

import math

import torch


def token_trust_region(
    log_ratio: torch.Tensor, advantages: torch.Tensor, *, epsilon_low: float, epsilon_high: float
) -> torch.Tensor:
    """Clip every token's log ratio on the side that the advantage pushes it, before it enters a trace.

        c(l) = min(l, log(1 + epsilon_high))   where the advantage is positive
        c(l) = max(l, log(1 - epsilon_low))    where it is negative
        c(l) = l                               where it is zero

    An epsilon_low of 1 or more is no lower bound, since no ratio is below 0: log(1 - epsilon_low) counts as -infinity.
    A token beyond its own bound becomes a constant there: it stops learning while the other tokens of the trace go on.

    Args:
        log_ratio: (B, T) log importance ratios, nats.
        advantages: (B,) or (B, T).
        epsilon_low: >= 0, lower bound 1 - epsilon_low of a token's ratio.
        epsilon_high: >= 0, upper bound 1 + epsilon_high of a token's ratio.

    Returns:
        (B, T), dtype and device of `log_ratio`.

    Raises:
        ValueError: an epsilon out of its range, or shapes that do not match.
    """
    lowest, highest = log_bounds(epsilon_low, epsilon_high)
    advantages = as_columns(advantages, log_ratio)
    upper = log_ratio.new_full(advantages.shape, math.inf).masked_fill_(advantages > 0, highest)
    lower = log_ratio.new_full(advantages.shape, -math.inf).masked_fill_(advantages < 0, lowest)
    return log_ratio.clamp(lower, upper)


def log_bounds(epsilon_low: float, epsilon_high: float) -> tuple[float, float]:
    """Return the lowest and the highest log ratio of a token under `token_trust_region`, which lists the errors."""
    if not epsilon_low >= 0:
        raise ValueError(f"epsilon_low must be at least 0, got {epsilon_low}")
    if not epsilon_high >= 0:
        raise ValueError(f"epsilon_high must be at least 0, got {epsilon_high}")
    return math.log1p(-epsilon_low) if epsilon_low < 1 else -math.inf, math.log1p(epsilon_high)


def as_columns(advantages: torch.Tensor, log_ratio: torch.Tensor) -> torch.Tensor:
    """Return advantages of shape (B,) as (B, 1), and those of shape (B, 1) or (B, T) as they are.

    Raises `ValueError` for any other shape, where `log_ratio` is (B, T).
    """
    columns = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
    if log_ratio.dim() != 2 or columns.shape not in [(len(log_ratio), 1), log_ratio.shape]:
        raise ValueError(
            f"advantages must be (B,) or (B, T) for log_ratio (B, T), got {tuple(columns.shape)} and "
            f"{tuple(log_ratio.shape)}"
        )
    return columns
