"""Compute what a traced loss reads from log-probabilities and advantages: pure functions, no model and no TRL.

The trainer calls these functions on the tensors of a loss and hands the results to TRL; `token_credit` calls them to
draw a configuration's credit. `docs/methods/index.md` has the formulas.

Shape suffixes: B completions, T completion tokens (padded).
"""

import math

import torch

from .kernels import check_arguments, runs_fused, trace_of_counted
from .metrics import trace_totals
from .trust_region import as_columns, log_bounds, token_trust_region

# An unnormalized trace can add up to more than exp() holds, and inf * 0 in a clipped branch would be NaN for every row.
# exp(20) is beyond any clip, and TRL bounds the log ratios of its VESPO loss by the same number.
MAX_TRACED_LOG_RATIO = 20.0


def floored_advantages(advantages: torch.Tensor, floor: float | None) -> torch.Tensor:
    """Raise negative advantages of any shape to at least `floor`, which is at most 0; None leaves them as they are."""
    return advantages if floor is None else advantages.clamp(min=floor)


def traced_log_ratio(
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    *,
    decay: float,
    kernel: str,
    normalize: bool,
    trust_region: str,
    epsilon_low: float,
    epsilon_high: float,
    eligible: torch.Tensor | None = None,
    gradient: str = "all",
    cap: float = MAX_TRACED_LOG_RATIO,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Trace the log importance ratios of the tokens: bound every token's own, then sum or average them by the kernel.

    Args:
        logps: (B, T) log-probabilities of the policy, nats. Differentiable.
        old_logps: (B, T) log-probabilities of the policy that sampled the completions, nats.
        mask: (B, T), nonzero for loss tokens.
        advantages: (B,) or (B, T), after the floor. Their sign chooses the side on which a token is bounded.
        decay: gamma * lambda, in [0, 1].
        kernel: one of `KERNELS`.
        normalize: divide by the sum of the weights.
        trust_region: "trace" leaves the tokens' log ratios as they are; "token" bounds each of them on the side that
            its advantage pushes (`token_trust_region`); "weight" bounds each of them by log(epsilon_high), whatever its
            advantage, as CISPO bounds its weights.
        epsilon_low: lower bound 1 - epsilon_low of a token's ratio under "token"; not used otherwise.
        epsilon_high: upper bound 1 + epsilon_high of a token's ratio under "token", epsilon_high itself under "weight".
        eligible: (B, T), nonzero for tokens whose log ratio enters a trace; all loss tokens by default.
        gradient: "all" lets the gradient of a traced log ratio reach the tokens in its trace by their weights; "own"
            gives it to the token's own bounded log ratio alone, with weight 1, and to nothing where the token is not
            eligible. The value is the same.
        cap: upper limit of the traced log ratio, above which it has no gradient.

    Returns:
        The traced log ratio z, (B, T) float32 (float64 for such inputs), zero outside the mask. And what is logged of
        it, (B, T) each: "weights", the sums of the weights in a token's trace; and booleans, "eligible" for tokens that
        entered a trace, "non_finite" for those whose log ratio is not finite and is left out, and, where tokens have
        bounds of their own, "clipped" for those beyond them.

    Raises:
        ValueError: an unknown `kernel`, a number out of its range, or shapes that do not match.
    """
    check_arguments(mask, decay, kernel, logps=logps, old_logps=old_logps, eligible=eligible)
    mask_BT = mask.bool()
    log_ratio_BT = logps - old_logps
    if log_ratio_BT.dtype != torch.float64:
        log_ratio_BT = log_ratio_BT.float()
    finite_BT = log_ratio_BT.detach().abs() < math.inf  # half the operations of `isfinite`
    eligible_BT = finite_BT & (mask_BT if eligible is None else eligible.bool())
    logged = {"eligible": eligible_BT, "non_finite": ~finite_BT}
    factors_BT = log_ratio_BT
    if trust_region == "token":
        factors_BT = token_trust_region(log_ratio_BT, advantages, epsilon_low=epsilon_low, epsilon_high=epsilon_high)
    elif trust_region == "weight":
        factors_BT = log_ratio_BT.clamp(max=math.log(epsilon_high))
    if trust_region != "trace":
        logged["clipped"] = (factors_BT != log_ratio_BT) & finite_BT
    entering_BT = factors_BT if gradient == "all" else factors_BT.detach()
    z_BT, logged["weights"] = trace_of_counted(entering_BT, mask_BT, eligible_BT, decay, kernel, normalize)
    if gradient == "own":
        own_BT = torch.where(eligible_BT & mask_BT, factors_BT, 0)
        z_BT = z_BT + (own_BT - own_BT.detach())  # zero in value, so that z is the same to the bit
    return z_BT.clamp(max=cap), logged


def traced_old_logps(
    logps: torch.Tensor, old_logps: torch.Tensor, mask: torch.Tensor, advantages: torch.Tensor, **options
) -> tuple[torch.Tensor, tuple[tuple[str, ...], torch.Tensor]]:
    """Return the old log-probabilities that hand a loss the traced log ratios, and the sums that are logged of these.

    Arguments and errors are those of `traced_log_ratio`, which says what is computed. On an NVIDIA GPU with Triton it
    is one kernel each way (`fused_credit.py`), which is differentiable once: for gradients to all tokens of a trace and
    to `logps` alone. Returns what `old_logps_under_trace` and `trace_totals` return.
    """
    fusible = options["kernel"] in ("recent", "both") and options.get("gradient", "all") == "all"
    fusible = fusible and logps.dtype == old_logps.dtype == torch.float32 and not old_logps.requires_grad
    if fusible and runs_fused(logps):
        return _fused(logps, old_logps, mask, advantages, **options)
    z, logged = traced_log_ratio(logps, old_logps, mask, advantages, **options)
    return old_logps_under_trace(logps, old_logps, z), trace_totals(mask, z=z, **logged)


def _fused(
    logps, old_logps, mask, advantages, *, decay, kernel, normalize, trust_region, epsilon_low, epsilon_high,
    eligible=None, gradient="all", cap=MAX_TRACED_LOG_RATIO,
):  # fmt: skip
    from .fused_credit import fused_old_logps  # here, since it imports Triton

    check_arguments(mask, decay, kernel, logps=logps, old_logps=old_logps, eligible=eligible)
    bounds = -math.inf, math.inf
    if trust_region == "token":
        advantages = as_columns(advantages, logps)
        bounds = log_bounds(epsilon_low, epsilon_high)
    elif trust_region == "weight":
        bounds = -math.inf, math.log(epsilon_high)
    mask = mask.bool()
    return fused_old_logps(
        logps, old_logps, mask, mask if eligible is None else eligible.bool(), advantages,
        decay=decay, both=kernel == "both", normalize=normalize, trust_region=trust_region, bounds=bounds, cap=cap,
    )  # fmt: skip


def old_logps_under_trace(logps: torch.Tensor, old_logps: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return the old log-probabilities under which a loss that computes `logps - old` finds the traced log ratio.

    Args:
        logps: (B, T) log-probabilities of the policy, nats.
        old_logps: (B, T) log-probabilities of the policy that sampled, nats.
        z: (B, T) traced log ratios. Their gradient is the only one that is left in `logps - old`.

    Returns:
        (B, T): `logps - z`. Where `logps` is not finite that would be NaN, and the token keeps its `old_logps`.
    """
    return torch.where(logps.detach().abs() < math.inf, logps - z, old_logps)


def traced_advantages(advantages: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply every token's advantage by its trace weight, the credit that it receives from the tokens after it.

    Args:
        advantages: (B,) or (B, T), after the floor.
        weights: (B, T), column sums of the kernel (`trace_weights`), zero for tokens that receive no credit.

    Returns:
        (B, T), zero where the weights are.
    """
    if advantages.dim() == 1:
        advantages = advantages.unsqueeze(1)
    return advantages * weights
