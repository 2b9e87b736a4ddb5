"""Compute the credit that a configuration gives to the tokens of completions, without training."""

import torch
from trl import GRPOConfig

from ..traces.config import TraceConfig
from ..traces.credit import floored_advantages, traced_advantages, traced_log_ratio
from ..traces.kernels import trace_weights


def token_credit(
    args: GRPOConfig,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    entropies: torch.Tensor | None = None,
    log_ratios: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the credit of every token: the gradient of `sum(A * ratio)` with respect to its log-probability.

    On policy, where every ratio is 1, that is A for GRPO, and A times a token's trace weight for an unnormalized trace.
    Off policy it is what is trained before TRL's loss clips: a token beyond its own trust region gets none. What TRL's
    loss adds (its clip and averages, KL, entropy masks) is not in it; `CreditHeatmapCallback` shows the whole loss of a
    run.

    Args:
        args: a configuration of a trace method, or any other `GRPOConfig`, whose credit is uniform.
        advantages: (B,) of the completions.
        mask: (B, T), nonzero for loss tokens; zero on a kept prefix.
        entropies: (B, T) in nats. `trace_entropy_fraction` below 1 takes its share of all B completions' loss tokens.
        log_ratios: (B, T) in nats, log-probabilities less those of the policy that sampled. None: all 0, on policy.

    Returns:
        (B, T) float32, zero outside the mask.

    Raises:
        ValueError: no entropies where the configuration needs them.
    """
    loss_tokens_BT = mask.bool()
    advantages_B1 = advantages.float().unsqueeze(1)
    log_ratio_BT = torch.zeros(mask.shape, device=mask.device) if log_ratios is None else log_ratios.detach().float()
    own_ratio_BT = log_ratio_BT.exp()
    if not isinstance(args, TraceConfig):
        return torch.where(loss_tokens_BT, advantages_B1 * own_ratio_BT, 0.0)
    advantages_B1 = floored_advantages(advantages_B1, args.negative_advantage_floor)
    eligible_BT = loss_tokens_BT
    if args.trace_entropy_fraction < 1:
        if entropies is None:
            raise ValueError(
                f"trace_entropy_fraction={args.trace_entropy_fraction} chooses tokens by entropy: give entropies"
            )
        known_BT = loss_tokens_BT & torch.isfinite(entropies)
        if not known_BT.any():
            return torch.zeros(mask.shape, device=mask.device)  # no token to credit, and no quantile of nothing
        threshold = torch.quantile(entropies[known_BT].float(), 1 - args.trace_entropy_fraction)
        eligible_BT = known_BT & (entropies >= threshold)
    if args.trace_target == "advantage":
        weights_BT = trace_weights(mask, decay=args.trace_decay, kernel=args.trace_kernel)
        credit_BT = traced_advantages(advantages_B1, weights_BT * eligible_BT)
        return torch.where(loss_tokens_BT, credit_BT * own_ratio_BT, 0.0)
    with torch.enable_grad():  # pictures are drawn of what was computed without gradients
        log_ratio_BT = log_ratio_BT.clone().requires_grad_()
        z_BT, _ = traced_log_ratio(
            log_ratio_BT,
            torch.zeros_like(log_ratio_BT),
            mask,
            advantages_B1,
            decay=args.trace_decay,
            kernel=args.trace_kernel,
            normalize=args.trace_normalize,
            trust_region=args.factor_bound,
            epsilon_low=args.epsilon,
            epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
            eligible=eligible_BT,
            gradient=args.trace_gradient,
        )
        (credit_BT,) = torch.autograd.grad((advantages_B1 * z_BT.exp() * loss_tokens_BT).sum(), log_ratio_BT)
    return credit_BT
