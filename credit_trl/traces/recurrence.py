"""Compute the sums of the two kernels that decay, in O(T) memory and few operations: pure tensor functions.

A GPU waits for the number of operations, not for their size, so a recurrence over T tokens takes log2(T) of them.

Shape suffixes: B completions, T completion tokens (padded). Packed tensors have N columns, T + 1 made even: column n
holds a row's n-th loss token; column 0 and those after the last token are empty. S stacks the sums of values and of
weights, K recurrences that differ in their decay, and P stands for N columns and the zeros that a recurrence reaches
into.
"""

import math

import torch


class DecayingSums(torch.autograd.Function):
    """Multiply values by the weights w(t, k) of their row, or by the transpose: each is the gradient of the other.

    `DecayingSums.apply` takes

    - x: (B, T), float32 or float64. Differentiable, any number of times.
    - source: (B, T) integers: n where `x` is the value of its row's n-th loss token, 0 where it is left out.
    - target: (B, T) integers: n where the sum of the n-th loss token goes, 0 where a zero goes.
    - decay: in [0, 1].
    - both: the weight of token k at token t is `max(decay^(t-k), decay^(k-1))`, else `decay^(t-k)`, for 1 <= k <= t.
    - transposed: w(k, t) in place of w(t, k).

    and returns a tuple: the sums of w(t, k) x[k] over k and, unless transposed, the sums of w(t, k), which have no
    gradient.

    Shifted copies are added, since additions stay in float32 under autocast and TF32, unlike a product with a matrix,
    and are deterministic on CUDA, unlike PyTorch's cumulative sum.
    """

    @staticmethod
    def forward(ctx, x_BT, source_BT, target_BT, decay, both, transposed):
        ctx.save_for_backward(target_BT, source_BT)
        ctx.gradient_options = decay, both, not transposed
        ctx.set_materialize_grads(False)  # the sums of weights have no gradient, and zeros would cost an operation
        sums = _both if both else _recent
        z_SBN = sums(x_BT, source_BT, decay, transposed)
        if transposed:
            z_SBN[..., 0].zero_()
        results = tuple(z_BN.gather(-1, target_BT) for z_BN in z_SBN)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx, gradient_BT, _=None):
        if gradient_BT is not None:
            gradient_BT, *_ = DecayingSums.apply(gradient_BT, *ctx.saved_tensors, *ctx.gradient_options)
        return gradient_BT, None, None, None, None, None


def power(decay: float, exponent: torch.Tensor) -> torch.Tensor:
    """Return decay^exponent for exponents >= 0, with 0^0 = 1. In float32 exp(k log a) keeps digits that a^k loses."""
    if decay == 0:
        return (exponent == 0).to(exponent.dtype)
    return torch.exp(exponent * math.log(decay))


def _recent(x_BT: torch.Tensor, source_BT: torch.Tensor, decay: float, transposed: bool) -> torch.Tensor:
    """Return z[n] = sum over k <= n of decay^(n-k) x[k], packed: (S, B, N)."""
    smallest = torch.finfo(x_BT.dtype).smallest_normal * torch.finfo(x_BT.dtype).eps  # the dtype holds nothing below it
    powers = {shift: decay**shift for shift in _shifts(x_BT) if decay**shift >= smallest}
    padded_KSBP, _ = _pack(x_BT, source_BT, 1, sum(powers), transposed)
    return _accumulate(padded_KSBP, powers, transposed)[0]


def _both(x_BT: torch.Tensor, source_BT: torch.Tensor, decay: float, transposed: bool) -> torch.Tensor:
    """Return z[n] = sum over k <= n of max(decay^(n-k), decay^(k-1)) x[k], packed: (S, B, N).

    The maximum is decay^(k-1) up to k = n // 2 and decay^(n-k) from there on. With R the recent trace of x, and E the
    prefix sum of decay^(k-1) x[k], which is a recent trace of decay 1,

        z[n] = R[n] + E[n // 2] - decay^(n - n // 2) R[n // 2]

    Transposed, the same steps go backward: what enters R and E, the recurrences, their sum.
    """
    shifts = _shifts(x_BT)
    padded_KSBP, (recent_SBN, earliest_SBN) = _pack(x_BT, source_BT, 2, sum(shifts), transposed)
    N = recent_SBN.shape[-1]
    H = N // 2
    power_N = power(decay, torch.arange(N, dtype=x_BT.dtype, device=x_BT.device))
    power_KSBN = torch.stack([power_N, torch.ones_like(power_N)]).view(2, 1, 1, N)
    powers = {shift: power_KSBN.narrow(-1, shift, 1) for shift in shifts}
    power_H2 = power_N.unfold(0, 2, 1)[:H]  # decay^(n - n // 2) at n = 2h and 2h + 1
    if transposed:
        z_SBH2 = recent_SBN.unflatten(-1, (H, 2))
        earliest_SBN[..., :H] = z_SBH2.sum(-1)
        recent_SBN[..., :H] -= (z_SBH2 * power_H2).sum(-1)
        recent_SBN, earliest_SBN = _accumulate(padded_KSBP, powers, transposed)
        recent_SBN[..., 1:].addcmul_(earliest_SBN[..., 1:], power_N[:-1])
        return recent_SBN
    earliest_SBN[..., 1:].addcmul_(recent_SBN[..., 1:], power_N[:-1])
    recent_SBN, earliest_SBN = _accumulate(padded_KSBP, powers, transposed)
    z_SBH2 = recent_SBN.unflatten(-1, (H, 2)) + earliest_SBN[..., :H, None]
    return z_SBH2.addcmul_(recent_SBN[..., :H, None], power_H2, value=-1).flatten(-2)


def _shifts(x_BT: torch.Tensor) -> list[int]:
    """Return the powers of two below T, the largest first."""
    return [2**exponent for exponent in reversed(range((x_BT.shape[1] - 1).bit_length()))]


def _pack(x_BT, source_BT, recurrences: int, reach: int, transposed: bool):
    """Return (K, S, B, P) zeros with N packed columns in them, and the view (K, S, B, N) of these columns.

    `x` and, unless transposed, a one for every value are packed for the first recurrence. The `reach` columns that stay
    zero are those before the packed ones or, transposed, those after them.
    """
    B, T = x_BT.shape
    N = T // 2 * 2 + 2
    padded_KSBP = x_BT.new_zeros(recurrences, 1 if transposed else 2, B, reach + N)
    packed_KSBN = padded_KSBP.narrow(-1, 0 if transposed else reach, N)
    packed_KSBN[0, 0].scatter_(-1, source_BT, x_BT)
    if not transposed:
        packed_KSBN[0, 1].scatter_(-1, source_BT, 1.0)
        packed_KSBN[0, ..., 0].zero_()  # what was left out went there
    return padded_KSBP, packed_KSBN


def _accumulate(z: torch.Tensor, powers: dict, transposed: bool) -> torch.Tensor:
    """Return z[n] = decay * z[n-1] + x[n] along the last dimension; transposed, z[n] = decay * z[n+1] + x[n].

    With S the shift by one column, z = (1 + decay S + decay^2 S^2 + ...) x is the product of 1 + decay^s S^s over
    s = 1, 2, 4, ... A step cuts off the s columns that have nothing to reach into, and the largest comes first, so that
    the others have less to add.

    Args:
        z: (K, S, B, P), x and as many zeros as the sum of the shifts.
        powers: decay^s for every shift s, the largest first: a number, or a tensor with a decay for each of K.
    """
    for shift, power in powers.items():
        newer, older = z[..., shift:], z[..., :-shift]
        if transposed:
            newer, older = older, newer
        if isinstance(power, torch.Tensor):
            z = torch.addcmul(newer, older, power)
        else:
            z = torch.add(newer, older, alpha=power)
    return z
