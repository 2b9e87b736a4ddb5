"""Compute eligibility traces over per-token log importance ratios: pure tensor functions, no model and no TRL.

The family, in the notation of `docs/methods/index.md`: the traced log ratio of token t is

    z[t] = sum over k of w(t, k) * e[k] * x[k]

with one of four kernels w, an eligibility e in {0, 1} and, for `normalize=True`, a division by the sum of w(t, k) e[k].
Nothing here allocates T x T or loops over tokens: `recurrence.py` has the two kernels that decay, and `fused.py` has
them for NVIDIA's GPUs.

Shape suffixes: B completions, T completion tokens (padded).
"""

import math
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from .recurrence import DecayingSums, power

KERNELS = ("identity", "recent", "both", "uniform")
# PyTorch's builds for NVIDIA's GPUs bring Triton on Linux.
HAS_TRITON = torch.version.cuda is not None and find_spec("triton") is not None


def eligibility_trace(
    x: torch.Tensor,
    mask: torch.Tensor,
    *,
    decay: float,
    kernel: str = "recent",
    eligible: torch.Tensor | None = None,
    normalize: bool = False,
) -> torch.Tensor:
    """Return the weighted sum of `x` over the loss tokens of a row, at every loss token of the row.

    With the clock n[t] = number of loss tokens up to and including t, the weight of token k at token t is

    - `identity`: 1 where k = t;
    - `recent`:   decay^(n[t] - n[k]) for k <= t, the accumulating trace z[t] = decay * z[t-1] + x[t];
    - `both`:     max(decay^(n[t] - n[k]), decay^(n[k] - 1)) for k <= t: the newest and the earliest tokens weigh;
    - `uniform`:  1 for every loss token of the row, before or after t.

    Args:
        x: (B, T) values, usually log importance ratios in nats. Differentiable, also twice. A non-finite value is left
            out as if its token were not eligible: it reaches no other token, and its own gradient is zero.
        mask: (B, T), nonzero for loss tokens. Other tokens neither carry nor decay a trace, wherever they stand.
        decay: gamma * lambda, in [0, 1]. `identity` and `uniform` do not use it.
        kernel: one of `KERNELS`.
        eligible: (B, T), nonzero for tokens whose value enters the trace; all loss tokens by default. An ineligible
            token still ticks the clock and still has a trace of its own.
        normalize: divide by the sum of the weights, which makes z a weighted mean of `x`. Where that sum is below the
            smallest normal number of the computation, everything eligible has been forgotten and z is 0.

    Returns:
        (B, T) in the dtype of `x`, zero outside the mask. Computed in float32, for float64 in float64.

    Raises:
        ValueError: `decay` outside [0, 1], an unknown `kernel`, an `x` of integers, or shapes that do not match.
    """
    check_arguments(mask, decay, kernel, x=x, eligible=eligible)
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    counted_BT = x.detach().abs() < math.inf
    if eligible is not None:
        counted_BT = counted_BT & eligible.bool()
    z_BT, _ = trace_of_counted(x.to(dtype), mask.bool(), counted_BT, decay, kernel, normalize)
    return z_BT.to(x.dtype)


def trace_of_counted(
    x_BT: torch.Tensor, mask_BT: torch.Tensor, counted_BT: torch.Tensor, decay: float, kernel: str, normalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the trace of `eligibility_trace`, and the sums of its weights, for arguments that have been checked.

    Args:
        x_BT: (B, T) float32 or float64, finite where `counted_BT` is True.
        mask_BT: (B, T) booleans, the loss tokens.
        counted_BT: (B, T) booleans, the tokens whose value enters the trace if they are loss tokens.
        decay, kernel, normalize: as for `eligibility_trace`.

    Returns:
        z[t], and the sum over k of w(t, k) e[k], which has no gradient. Both (B, T) in the dtype of `x_BT`, and zero
        outside the mask.
    """
    if kernel in ("recent", "both"):
        if runs_fused(x_BT):
            from .fused import fused_trace  # here, since it imports Triton

            return fused_trace(x_BT, mask_BT, counted_BT, decay, kernel == "both", normalize)
        column_BT = mask_BT.cumsum(-1) * mask_BT
        z_BT, weight_BT = DecayingSums.apply(x_BT, column_BT * counted_BT, column_BT, decay, kernel == "both", False)
    else:
        counted_BT = counted_BT & mask_BT
        z_BT, weight_BT = torch.where(counted_BT, x_BT, 0), counted_BT.to(x_BT.dtype)
        if kernel == "uniform":
            z_BT, weight_BT = (torch.where(mask_BT, sum_BT.sum(-1, keepdim=True), 0) for sum_BT in (z_BT, weight_BT))
    if normalize:
        # A sum of weights below the smallest normal number becomes infinite, which makes z 0.
        info = torch.finfo(x_BT.dtype)
        z_BT = z_BT / F.threshold(weight_BT, info.tiny * (1 - info.eps), math.inf)
    return z_BT, weight_BT


def runs_fused(x: torch.Tensor) -> bool:
    """Tell whether the traces of `x` are computed by `fused.py`. `torch.compile` fuses the other operations itself."""
    return HAS_TRITON and x.is_cuda and not torch.compiler.is_compiling()


def trace_weights(mask: torch.Tensor, *, decay: float, kernel: str) -> torch.Tensor:
    """Return the column sums of the kernel: W[k] = sum over t of w(t, k), the credit of token k from its successors.

    On policy (every log ratio 0) the gradient of `sum(A * exp(z))` with respect to x[k] is `A * W[k]`, so multiplying
    the advantages by W assigns the same credit without touching the ratio (GRPO-lambda's eps-weight). For `recent`
    W[k] = (1 - decay^(N - n[k] + 1)) / (1 - decay) with N the number of loss tokens of the row.

    Args:
        mask: (B, T), nonzero for loss tokens.
        decay: gamma * lambda, in [0, 1].
        kernel: one of `KERNELS`.

    Returns:
        (B, T) float32, zero outside the mask.

    Raises:
        ValueError: `decay` outside [0, 1] or an unknown `kernel`.
    """
    check_arguments(mask, decay, kernel)
    mask_BT = mask.bool()
    if kernel == "identity":
        return mask_BT.float()
    n_BT = mask_BT.cumsum(-1).float()
    N_B1 = n_BT[:, -1:]
    if kernel == "uniform":
        weights_BT = N_B1
    elif kernel == "recent":
        weights_BT = _geometric_sum(decay, N_B1 + 1 - n_BT)
    else:
        # max(decay^(n - k), decay^(k - 1)) is the first for n < 2k and the second, a constant, for every later n.
        newest_BT = _geometric_sum(decay, torch.minimum(n_BT, N_B1 + 1 - n_BT))
        weights_BT = newest_BT + (N_B1 + 1 - 2 * n_BT).clamp(min=0) * power(decay, n_BT - 1)
    return torch.where(mask_BT, weights_BT, 0)


def check_arguments(mask: torch.Tensor, decay: float, kernel: str, **tensors: torch.Tensor | None) -> None:
    """Raise `ValueError` for a number out of its range, an unknown kernel, or tensors not of the mask's shape."""
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if mask.dim() != 2:
        raise ValueError(f"mask must have shape (B, T), got {tuple(mask.shape)}")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != mask.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but mask has {tuple(mask.shape)}")


def _geometric_sum(decay: float, count: torch.Tensor) -> torch.Tensor:
    """Return 1 + decay + ... + decay^(count - 1) for counts >= 1."""
    if decay == 1:
        return count
    if decay == 0:
        return torch.ones_like(count)
    return torch.expm1(count * math.log(decay)) / (decay - 1)
