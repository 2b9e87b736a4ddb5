"""Sum over loss tokens so that processes add up, and compute the figures that the trace trainers log."""

import torch


def trace_totals(
    mask: torch.Tensor,
    *,
    eligible: torch.Tensor,
    weights: torch.Tensor,
    z: torch.Tensor | None = None,
    clipped: torch.Tensor | None = None,
    non_finite: torch.Tensor | None = None,
) -> tuple[tuple[str, ...], torch.Tensor]:
    """Return the names of the figures and their sums over the loss tokens, on the tensors' device.

    Args:
        mask: (B, T), nonzero for loss tokens.
        eligible: (B, T), tokens whose factor enters a trace.
        weights: (B, T), sums of the kernel's weights over its columns or its rows, of eligible tokens alone.
        z: (B, T), traced log ratios, where the ratio is traced.
        clipped: (B, T), tokens whose own factor was clipped, where tokens have a trust region of their own.
        non_finite: (B, T), tokens whose log ratio is not finite, where the ratio is traced.
    """
    values = {"tokens": torch.ones_like(weights), "eligible": eligible, "weights": weights}
    if z is not None:
        # Moments of ratio - 1: around 1 the squares of the ratios themselves would cancel to nothing in float32.
        excess = torch.expm1(z.detach())
        values |= {"excess": excess, "excess_squared": excess.square()}
    if clipped is not None:
        values["clipped"] = clipped
    if non_finite is not None:
        values["non_finite"] = non_finite
    # One reduction for all of them: a GPU waits for every single one.
    stacked = torch.stack([value.to(weights.dtype) for value in values.values()])
    return tuple(values), (stacked * mask.bool()).sum((1, 2))


def trace_metrics(total: dict[str, float]) -> dict[str, float]:
    """Return the figures of a logging window from the sum of its totals: means over the loss tokens.

    Non-finite log ratios are counted, not averaged: a single one in a long window has to show.
    """
    tokens = max(total["tokens"], 1.0)
    metrics = {
        "trace/eligible_fraction": total["eligible"] / tokens,
        # The kernel's weights summed over its columns or its rows are the same total.
        "trace/effective_length": total["weights"] / tokens,
    }
    if "excess" in total:
        mean = total["excess"] / tokens
        metrics["trace/ratio_mean"] = 1 + mean
        metrics["trace/ratio_std"] = max(total["excess_squared"] / tokens - mean**2, 0.0) ** 0.5
    if "clipped" in total:
        metrics["trace/token_clip_fraction"] = total["clipped"] / tokens
    if "non_finite" in total:
        metrics["trace/non_finite_count"] = total["non_finite"]
    return metrics
