"""Eligibility traces over per-token log importance ratios: pure tensor functions, no model and no TRL.

The family, in the notation of `docs/methods/index.md`: the traced log ratio of token t is

    z[t] = sum over k of w(t, k) * e[k] * x[k]

with one of four kernels w, an eligibility e in {0, 1} and, for `normalize=True`, a division by the sum of w(t, k) e[k].
Every kernel has an O(B*T) form; nothing here allocates T x T or loops over tokens.

Shape suffixes: B completions, T completion tokens (padded), N loss tokens of a row packed to the left (T wide).
"""

import math

import torch
import torch.nn.functional as F

KERNELS = ("identity", "recent", "both", "uniform")

_CHUNK = 128  # tokens that one level of the chunked recurrence covers


def eligibility_trace(
    x: torch.Tensor,
    mask: torch.Tensor,
    *,
    decay: float,
    kernel: str = "recent",
    eligible: torch.Tensor | None = None,
    normalize: bool = False,
) -> torch.Tensor:
    """Weighted sum of `x` over the loss tokens of a row, at every loss token of the row.

    With the clock n[t] = number of loss tokens up to and including t, the weight of token k at token t is

    - `identity`: 1 where k = t;
    - `recent`:   decay^(n[t] - n[k]) for k <= t, the accumulating trace z[t] = decay * z[t-1] + x[t];
    - `both`:     max(decay^(n[t] - n[k]), decay^(n[k] - 1)) for k <= t: the newest and the earliest tokens weigh;
    - `uniform`:  1 for every loss token of the row, before or after t.

    Args:
        x: (B, T) values, usually log importance ratios in nats. Differentiable. A non-finite value is left out as if
            its token were not eligible: it reaches no other token, and its own gradient is zero.
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
    _check(mask, decay, kernel, x=x, eligible=eligible)
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}")
    mask_BT = mask.bool()
    counted_BT = mask_BT & torch.isfinite(x)
    if eligible is not None:
        counted_BT = counted_BT & eligible.bool()
    x_BT = torch.where(counted_BT, x, torch.zeros_like(x)).to(_compute_dtype(x))
    if normalize:
        # The sums of the weights are the trace of the eligibilities, so both go through the kernel together.
        sums = _apply_kernel(torch.stack([x_BT, counted_BT.to(x_BT.dtype)]), mask_BT, decay, kernel)
        weight_BT = sums[1]
        remembered_BT = weight_BT >= torch.finfo(x_BT.dtype).tiny
        z_BT = sums[0] / torch.where(remembered_BT, weight_BT, torch.ones_like(weight_BT))
        z_BT = torch.where(remembered_BT, z_BT, torch.zeros_like(z_BT))
    else:
        z_BT = _apply_kernel(x_BT, mask_BT, decay, kernel)
    return torch.where(mask_BT, z_BT, torch.zeros_like(z_BT)).to(x.dtype)


def trace_weights(mask: torch.Tensor, *, decay: float, kernel: str) -> torch.Tensor:
    """Column sums of the kernel: W[k] = sum over t of w(t, k), the credit that token k receives from its successors.

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
    _check(mask, decay, kernel)
    mask_BT = mask.bool()
    k_BT = mask_BT.cumsum(-1).float() - 1  # 0-based clock
    N_B1 = mask_BT.sum(-1, keepdim=True).float()
    if kernel == "identity":
        weights_BT = torch.ones_like(k_BT)
    elif kernel == "uniform":
        weights_BT = N_B1.expand_as(k_BT)
    elif kernel == "recent":
        weights_BT = _geometric_sum(decay, N_B1 - k_BT)
    else:
        # max(decay^(t-k), decay^k) is the first for t <= 2k and the second, a constant, for every later t.
        newest_BT = _geometric_sum(decay, torch.minimum(k_BT, N_B1 - 1 - k_BT) + 1)
        weights_BT = newest_BT + (N_B1 - 1 - 2 * k_BT).clamp(min=0) * _power(decay, k_BT)
    return torch.where(mask_BT, weights_BT, torch.zeros_like(weights_BT))


def token_trust_region(
    log_ratio: torch.Tensor, advantages: torch.Tensor, *, epsilon_low: float, epsilon_high: float
) -> torch.Tensor:
    """Clip every token's log ratio on the side that the advantage pushes it, before it enters a trace.

        c(l) = min(l, log(1 + epsilon_high))   where the advantage is positive
        c(l) = max(l, log(1 - epsilon_low))    where it is negative
        c(l) = l                               where it is zero

    A token beyond its own bound becomes a constant there: it stops learning while the other tokens of the trace go on.

    Args:
        log_ratio: (B, T) log importance ratios, nats.
        advantages: (B,) or (B, T).
        epsilon_low: in [0, 1), lower bound 1 - epsilon_low of a token's ratio.
        epsilon_high: >= 0, upper bound 1 + epsilon_high of a token's ratio.

    Returns:
        (B, T), dtype and device of `log_ratio`.

    Raises:
        ValueError: an epsilon out of its range, or shapes that do not match.
    """
    if not 0 <= epsilon_low < 1:
        raise ValueError(f"epsilon_low must be in [0, 1), got {epsilon_low}")
    if not epsilon_high >= 0:
        raise ValueError(f"epsilon_high must be at least 0, got {epsilon_high}")
    if advantages.dim() == 1:
        advantages = advantages.unsqueeze(1)
    if log_ratio.dim() != 2 or advantages.shape not in [(len(log_ratio), 1), log_ratio.shape]:
        raise ValueError(
            f"advantages must be (B,) or (B, T) for log_ratio (B, T), got {tuple(advantages.shape)} and "
            f"{tuple(log_ratio.shape)}"
        )
    upper_BT = log_ratio.clamp(max=math.log1p(epsilon_high))
    lower_BT = log_ratio.clamp(min=math.log1p(-epsilon_low))
    return torch.where(advantages > 0, upper_BT, torch.where(advantages < 0, lower_BT, log_ratio))


def _check(mask, decay, kernel, **tensors):
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if mask.dim() != 2:
        raise ValueError(f"mask must have shape (B, T), got {tuple(mask.shape)}")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != mask.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but mask has {tuple(mask.shape)}")


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _apply_kernel(x: torch.Tensor, mask_BT: torch.Tensor, decay: float, kernel: str) -> torch.Tensor:
    """The unnormalized trace of `x` (..., B, T), which is zero at every token that does not count."""
    if kernel == "identity":
        return x
    if kernel == "uniform":
        return x.sum(-1, keepdim=True).expand_as(x)
    # Pack the loss tokens to the left, so that the clock is the position; the others go to a slot that is cut off.
    T = x.shape[-1]
    position_BT = mask_BT.cumsum(-1) - 1
    slot = torch.where(mask_BT, position_BT, T).expand(x.shape)
    packed_BN = x.new_zeros(*x.shape[:-1], T + 1).scatter(-1, slot, x)[..., :T]
    trace_BN = _recent(packed_BN, decay) if kernel == "recent" else _both(packed_BN, decay)
    return trace_BN.gather(-1, position_BT.clamp(min=0).expand(x.shape))


def _recent(x: torch.Tensor, decay: float) -> torch.Tensor:
    """z[t] = decay * z[t-1] + x[t] along the last dimension.

    Within a chunk the recurrence is unrolled by doubling (7 additions for 128 tokens); what enters a chunk is the same
    recurrence over the chunks' last values with decay^128. Additions of shifted copies, rather than a product with a
    triangular matrix, stay in float32 under autocast and TF32.
    """
    T = x.shape[-1]
    if T <= _CHUNK:
        return _recent_by_doubling(x, decay)
    chunks = F.pad(x, (0, -T % _CHUNK)).unflatten(-1, (-1, _CHUNK))
    within = _recent_by_doubling(chunks, decay)
    entering = F.pad(_recent(within[..., -1], decay**_CHUNK), (1, -1))
    age = torch.arange(1, _CHUNK + 1, device=x.device, dtype=x.dtype)
    return (within + entering.unsqueeze(-1) * _power(decay, age)).flatten(-2)[..., :T]


def _recent_by_doubling(x: torch.Tensor, decay: float) -> torch.Tensor:
    """The recurrence for a short last dimension: after the step with shift s, z[t] holds its 2s newest terms."""
    shift = 1
    while shift < x.shape[-1]:
        x = torch.add(x, F.pad(x[..., :-shift], (shift, 0)), alpha=decay**shift)
        shift *= 2
    return x


def _both(x: torch.Tensor, decay: float) -> torch.Tensor:
    """z[t] = sum over k <= t of max(decay^(t-k), decay^k) x[k] along the last dimension, t from 0.

    The maximum is decay^k for k < ceil(t/2) and decay^(t-k) from there on: a prefix sum of decay^k x[k], and the
    recent trace less what it holds of the first half.
    """
    T = x.shape[-1]
    recent = _recent(x, decay)
    t = torch.arange(T, device=x.device, dtype=x.dtype)
    earliest = _recent(x * _power(decay, t), 1.0)  # a prefix sum; PyTorch's own is not deterministic on CUDA

    def at_half(values):  # values[ceil(t/2) - 1] for t = 1 .. T-1
        return values[..., : T // 2].unsqueeze(-1).expand(*values.shape[:-1], T // 2, 2).flatten(-2)[..., : T - 1]

    first_half = at_half(earliest) - at_half(recent) * _power(decay, t[1:].div(2, rounding_mode="floor") + 1)
    return recent + F.pad(first_half, (1, 0))


def _power(decay: float, exponent: torch.Tensor) -> torch.Tensor:
    """decay^exponent for exponents >= 0, with 0^0 = 1. In float32 exp(k log a) keeps the digits that a^k loses."""
    if decay == 0:
        return (exponent == 0).to(exponent.dtype)
    return torch.exp(exponent * math.log(decay))


def _geometric_sum(decay: float, count: torch.Tensor) -> torch.Tensor:
    """1 + decay + ... + decay^(count - 1) for counts >= 1."""
    if decay == 1:
        return count
    if decay == 0:
        return torch.ones_like(count)
    return -torch.expm1(count * math.log(decay)) / (1 - decay)
