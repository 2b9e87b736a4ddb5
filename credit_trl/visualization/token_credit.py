"""The credit that a configuration gives to the tokens of completions, without training."""

import torch
from trl import GRPOConfig

from ..traces.config import TraceConfig
from ..traces.kernels import eligibility_trace, trace_weights


def token_credit(
    args: GRPOConfig, advantages: torch.Tensor, mask: torch.Tensor, entropies: torch.Tensor | None = None
) -> torch.Tensor:
    """On-policy credit of every token: the gradient of `sum(A * ratio)` with respect to its log-probability.

    With all ratios 1, that is A for GRPO, and A times a token's trace weight for an unnormalized trace. What TRL's loss
    adds (its averages, KL, entropy masks) is not in it; `CreditHeatmapCallback` shows the whole loss of a run.

    Args:
        args: a configuration of a trace method, or any other `GRPOConfig`, whose credit is uniform.
        advantages: (B,) of the completions.
        mask: (B, T), nonzero for loss tokens; zero on a kept prefix.
        entropies: (B, T) in nats. `trace_entropy_fraction` below 1 takes its share of all B completions' loss tokens.

    Returns:
        (B, T) float32, zero outside the mask.

    Raises:
        ValueError: no entropies where the configuration needs them.
    """
    loss_tokens_BT = mask.bool()
    advantages_B1 = advantages.float().unsqueeze(1)
    if not isinstance(args, TraceConfig):
        return advantages_B1 * loss_tokens_BT
    if args.negative_advantage_floor is not None:
        advantages_B1 = advantages_B1.clamp(min=args.negative_advantage_floor)
    eligible_BT = loss_tokens_BT
    if args.trace_entropy_fraction < 1:
        if entropies is None:
            raise ValueError(
                f"trace_entropy_fraction={args.trace_entropy_fraction} chooses tokens by entropy: give entropies"
            )
        known_BT = loss_tokens_BT & torch.isfinite(entropies)
        if not known_BT.any():
            return torch.zeros(mask.shape, device=mask.device)  # nobody to credit, and no quantile of nothing
        threshold = torch.quantile(entropies[known_BT].float(), 1 - args.trace_entropy_fraction)
        eligible_BT = known_BT & (entropies >= threshold)
    decay = args.trace_gamma * args.trace_lambda
    if args.trace_target == "advantage":
        return advantages_B1 * trace_weights(mask, decay=decay, kernel=args.trace_kernel) * eligible_BT
    with torch.enable_grad():  # pictures are drawn of what was computed without gradients
        log_ratio_BT = torch.zeros(mask.shape, device=mask.device, requires_grad=True)
        z_BT = eligibility_trace(
            log_ratio_BT,
            mask,
            decay=decay,
            kernel=args.trace_kernel,
            eligible=eligible_BT,
            normalize=args.trace_normalize,
        )
        (credit_BT,) = torch.autograd.grad((advantages_B1 * z_BT.exp() * loss_tokens_BT).sum(), log_ratio_BT)
    return credit_BT
