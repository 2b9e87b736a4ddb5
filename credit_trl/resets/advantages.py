"""Compute group-wise advantages: TRL's, with every group normalized on its own. Torch only.

Shape suffixes: N completions, prompt by prompt; F reward functions; K groups, M rows of the largest group.
"""

import torch


def group_advantages(
    rewards_per_func: torch.Tensor,
    reward_weights: torch.Tensor,
    group_ids: torch.Tensor,
    *,
    scale_rewards: str = "group",
    multi_objective_aggregation: str = "sum_then_normalize",
) -> torch.Tensor:
    """Return TRL's advantages with every group normalized on its own, whatever the groups' sizes and order.

    They equal TRL's to the bit where every run of `num_generations` rows is one group. With r = sum over f of
    weight[f] * reward[f], and mean and std (Bessel's) over the rows of a group:

    - `sum_then_normalize`: r - mean(r), over std(r) + 1e-4 for "group", over the whole batch's std + 1e-4 for "batch";
    - `normalize_then_sum`: r of the group-wise normalized rewards, normalized over the whole batch. As in TRL,
      `scale_rewards` has no part in it.

    Args:
        rewards_per_func: (N, F) rewards. NaN for a reward function's `None`, which no mean, std or sum counts.
        reward_weights: (F,).
        group_ids: (N,) integers, equal for the rows of a group.
        scale_rewards: "group", "batch" or "none".
        multi_objective_aggregation: "sum_then_normalize" or "normalize_then_sum".

    Returns:
        (N,) advantages, dtype and device of `rewards_per_func`; 0 where no function gave a reward, or nothing else in
        the group has one.

    Raises:
        ValueError: an unknown setting, or shapes that do not match.
    """
    _check_advantages(rewards_per_func, reward_weights, group_ids, scale_rewards, multi_objective_aggregation)
    weights_F = reward_weights.to(rewards_per_func)
    unscorable_N = torch.isnan(rewards_per_func).all(dim=1)

    # Groups become rows that are padded with NaN, which the means below skip as they skip missing rewards.
    group_N, size_K = torch.unique(group_ids.to(rewards_per_func.device), return_inverse=True, return_counts=True)[1:]
    order_N = torch.argsort(group_N, stable=True)
    first_K = size_K.cumsum(0) - size_K
    column_N = torch.empty_like(order_N)
    column_N[order_N] = torch.arange(len(order_N), device=order_N.device) - first_K[group_N[order_N]]

    def grouped(values: torch.Tensor) -> torch.Tensor:  # (N, ...) to (K, M, ...)
        rows = values.new_full((len(size_K), int(size_K.max()), *values.shape[1:]), torch.nan)
        rows[group_N, column_N] = values
        return rows

    if multi_objective_aggregation == "normalize_then_sum":
        rewards_KMF = grouped(rewards_per_func)
        mean_K1F = torch.nanmean(rewards_KMF, dim=1, keepdim=True)
        normalized_KMF = (rewards_KMF - mean_K1F) / (_nanstd(rewards_KMF, dim=1) + 1e-4)
        rewards_N = (normalized_KMF[group_N, column_N] * weights_F).nansum(dim=1)
        rewards_N = rewards_N.masked_fill(unscorable_N, torch.nan)
        advantages_N = (rewards_N - torch.nanmean(rewards_N)) / (_nanstd(rewards_N, dim=0) + 1e-4)
    else:
        rewards_N = (rewards_per_func * weights_F).nansum(dim=1).masked_fill(unscorable_N, torch.nan)
        rewards_KM = grouped(rewards_N)
        advantages_N = rewards_N - torch.nanmean(rewards_KM, dim=1)[group_N]
        if scale_rewards == "group":
            advantages_N = advantages_N / (_nanstd(rewards_KM, dim=1)[group_N, 0] + 1e-4)
        elif scale_rewards == "batch":
            advantages_N = advantages_N / (_nanstd(rewards_N, dim=0) + 1e-4)
    return torch.nan_to_num(advantages_N, nan=0.0)


def _nanstd(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the standard deviation (Bessel's) over what is not NaN; NaN for fewer than two. Keeps the dimension."""
    mean = torch.nanmean(x, dim=dim, keepdim=True)
    count = (~torch.isnan(x)).sum(dim=dim, keepdim=True).to(x.dtype)
    correction = torch.where(count > 1, count / (count - 1), torch.nan)
    return torch.sqrt(torch.nanmean((x - mean) ** 2, dim=dim, keepdim=True) * correction)


def _check_advantages(rewards_per_func, reward_weights, group_ids, scale_rewards, multi_objective_aggregation):
    if rewards_per_func.dim() != 2:
        raise ValueError(f"rewards_per_func must have shape (N, F), got {tuple(rewards_per_func.shape)}")
    N, F = rewards_per_func.shape
    for name, tensor, shape in (("reward_weights", reward_weights, (F,)), ("group_ids", group_ids, (N,))):
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} for rewards_per_func ({N}, {F}), got {tuple(tensor.shape)}"
            )
    if scale_rewards not in ("group", "batch", "none"):
        raise ValueError(f"scale_rewards must be 'group', 'batch' or 'none', got {scale_rewards!r}")
    if multi_objective_aggregation not in ("sum_then_normalize", "normalize_then_sum"):
        raise ValueError(
            "multi_objective_aggregation must be 'sum_then_normalize' or 'normalize_then_sum', got "
            f"{multi_objective_aggregation!r}"
        )
