"""A kernel's weights from its definition."""

import torch


def weight(kernel: str, decay: float, n_t: int, n_k: int) -> float:
    """w(t, k) from the definition; n is the clock, 1 at the first loss token."""
    if kernel == "uniform":
        return 1.0
    if n_k > n_t:
        return 0.0
    if kernel == "identity":
        return float(n_k == n_t)
    if kernel == "recent":
        return decay ** (n_t - n_k)
    return max(decay ** (n_t - n_k), decay ** (n_k - 1))


def weight_matrix(kernel: str, decay: float, N: int) -> torch.Tensor:
    """Return w(t, k) of a row of N loss tokens, (N, N) in float64."""
    n_t, n_k = torch.arange(1, N + 1).unsqueeze(1), torch.arange(1, N + 1)
    if kernel == "uniform":
        return torch.ones(N, N, dtype=torch.float64)
    if kernel == "identity":
        return torch.eye(N, dtype=torch.float64)
    weights = torch.pow(torch.tensor(decay, dtype=torch.float64), (n_t - n_k).clamp(min=0))
    if kernel == "both":
        weights = torch.maximum(weights, torch.pow(torch.tensor(decay, dtype=torch.float64), n_k - 1))
    return weights.tril()
