"""A kernel's weight from its definition."""


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
