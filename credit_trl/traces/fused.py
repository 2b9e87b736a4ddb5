"""Compute the sums of the two kernels that decay as one GPU kernel each way, in Triton.

`recurrence.py` says what is computed. Here one launch does all of it: the clock of the loss tokens, the sums of values
and of weights, and the division. One program walks a row of tokens, a block at a time, and keeps the sums between
blocks in registers. The gradient is the same walk from the row's end, with the transposed weights. No program writes
what another one reads, and nothing is added atomically, so results are deterministic. Sums are in float64: a decay
that is rounded to float32 and multiplied by itself thousands of times becomes another decay.

Shape suffixes: B completions, T completion tokens (padded).
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 1024  # tokens of a step of the walk
LAUNCH = dict(num_warps=4, num_stages=1)  # one stage: no load may move ahead of the barrier before it


def fused_trace(
    x_BT: torch.Tensor, mask_BT: torch.Tensor, counted_BT: torch.Tensor, decay: float, both: bool, normalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the trace and the sums of its weights, as `kernels.trace_of_counted` does for these arguments.

    `both` is True for the kernel `both`, and False for `recent`. Differentiable in `x_BT`, any number of times.
    """
    column_BT = torch.empty(x_BT.shape, dtype=torch.int32, device=x_BT.device)
    weight_BT = torch.empty(x_BT.shape, dtype=x_BT.dtype, device=x_BT.device)
    z_BT = FusedTrace.apply(x_BT, column_BT, weight_BT, (mask_BT, counted_BT), decay, both, normalize, False)
    return z_BT, weight_BT


class FusedTrace(torch.autograd.Function):
    """Multiply values by the weights w(t, k) of their row, or by the transpose: each is the gradient of the other.

    `FusedTrace.apply` returns (B, T), and takes

    - x: (B, T). Differentiable, any number of times.
    - column: (B, T) int32: n at its row's n-th loss token if its value counts, -n if it does not, 0 elsewhere.
    - weight: (B, T), the sums of weights.
    - marks: the loss tokens and those that count, from which this call fills `column` and `weight`. None where an
      earlier call has filled them.
    - decay, normalize: as for `kernels.eligibility_trace`.
    - both: the weight of token k at token t is `max(decay^(t-k), decay^(k-1))`, else `decay^(t-k)`, for 1 <= k <= t.
    - transposed: w(k, t) in place of w(t, k).
    """

    @staticmethod
    def forward(ctx, x_BT, column_BT, weight_BT, marks, decay, both, normalize, transposed):
        ctx.save_for_backward(column_BT, weight_BT)
        ctx.gradient_options = None, decay, both, normalize, not transposed
        B, T = x_BT.shape
        z_BT = torch.empty_like(x_BT, memory_format=torch.contiguous_format)
        tensors = x_BT.contiguous(), column_BT, weight_BT
        # Between the walk's steps, `both` writes sums where other threads find them: of values, and of weights.
        sums = (1 if transposed else 4 if marks else 2) if both else 0
        packed = torch.empty(B, sums, T + 1, dtype=torch.float64, device=x_BT.device) if both else None
        options = constants(decay, x_BT.dtype) | dict(NORMALIZE=normalize) | LAUNCH
        with torch.cuda.device_of(x_BT):
            if transposed:
                _walk_back[(B,)](*tensors, None, packed, z_BT, T, **options)
            else:
                marks = map(as_bytes, marks or (None, None))
                _walk[(B,)](*tensors, *marks, packed, z_BT, T, SUMS=sums, **options)
        return z_BT

    @staticmethod
    def backward(ctx, gradient_BT):
        return FusedTrace.apply(gradient_BT, *ctx.saved_tensors, *ctx.gradient_options), *[None] * 7


def as_bytes(mark: torch.Tensor | None) -> torch.Tensor | None:
    """Return booleans as a program can read them: contiguous bytes, which share their memory."""
    return None if mark is None else mark.contiguous().view(torch.uint8)


def constants(decay: float, dtype: torch.dtype) -> dict[str, Any]:
    """Return what is compiled into a program: a launch would round a float among its arguments to float32."""
    return dict(
        DECAY=decay,
        LOG_DECAY=math.log(decay) if decay else 0.0,
        TINY=torch.finfo(dtype).tiny,
        BLOCK=BLOCK,
    )


@triton.jit(do_not_specialize=["T"])  # it differs from batch to batch, and each kind would be compiled anew
def _walk(
    x, column, weight, mask, counted, packed, z, T,
    SUMS: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr, LOG_DECAY: tl.constexpr, TINY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the traces of a row. `packed` has SUMS rows of T + 1 numbers, the n-th for the n-th loss token."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    zero = tl.full([], 0, tl.float64)
    recent, earliest, recent_weight, earliest_weight = zero, zero, zero, zero  # at the end of the block before
    clock = tl.full([], 0, tl.int32)
    for start in range(0, T, BLOCK):
        inside = start + place < T
        token = row * T + start + place
        value = tl.load(x + token, inside, other=0).to(tl.float64)
        if mask is None:
            signed_n = tl.load(column + token, inside, other=0)
        else:
            loss = tl.load(mask + token, inside, other=0) != 0
            n = clock + tl.cumsum(loss.to(tl.int32), 0)
            clock = tl.max(n, 0)
            signed_n = tl.where(loss, tl.where(tl.load(counted + token, inside, other=0) != 0, n, -n), 0)
            tl.store(column + token, signed_n, inside)
        n = tl.abs(signed_n)
        value = tl.where(signed_n > 0, value, 0)
        sums = packed + row * SUMS * (T + 1) if SUMS else packed
        trace, recent, earliest = _traces(value, n, place, sums, T, recent, earliest, SUMS, DECAY, LOG_DECAY, BLOCK)
        if mask is not None:
            one = (signed_n > 0).to(tl.float64)
            sums = sums + 2 * (T + 1) if SUMS else sums
            total, recent_weight, earliest_weight = _traces(
                one, n, place, sums, T, recent_weight, earliest_weight, SUMS, DECAY, LOG_DECAY, BLOCK
            )
            total = tl.where(n > 0, total, 0)
            tl.store(weight + token, total, inside)
        elif NORMALIZE:
            total = tl.load(weight + token, inside, other=0)
        if NORMALIZE:
            trace = _divide(trace, total, TINY)
        tl.store(z + token, tl.where(n > 0, trace, 0), inside)


@triton.jit(do_not_specialize=["T"])
def _walk_back(
    x, column, weight, flags, packed, z, T,
    NORMALIZE: tl.constexpr, DECAY: tl.constexpr, LOG_DECAY: tl.constexpr, TINY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the transposed traces of a row, from its last token to its first.

    Transposed, the steps of `_traces` go backward. For `both`, token n adds x[n] to R at n and to E at n // 2, and
    -decay^(n - n // 2) x[n] to R at n // 2. It therefore collects from the tokens 2n and 2n + 1, which the walk has met
    before. No scan runs backward: the tokens themselves are read in the opposite order.

    With `flags`, those of `fused_credit.py`, x is the gradient of what a loss reads, and z that of log-probabilities.
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    recent_before = tl.full([], 0, tl.float64)
    earliest_before = tl.full([], 0, tl.float64)
    N = tl.full([], 0, tl.int32)
    for start in range(0, T, BLOCK):
        inside = start + place < T
        token = row * T + T - 1 - start - place
        signed_n = tl.load(column + token, inside, other=0)
        n = tl.abs(signed_n)
        value = tl.load(x + token, inside, other=0).to(tl.float64)
        if flags is not None:
            flag = tl.load(flags + token, inside, other=0)
            direct = tl.where(flag & 1 != 0, value, 0)
            value = tl.where(flag & 2 != 0, -direct, 0)
        if NORMALIZE:
            value = _divide(value, tl.load(weight + token, inside, other=0), TINY)
        value = tl.where(n > 0, value, 0)
        decay = tl.where(n > 0, tl.full([BLOCK], DECAY, tl.float64), 1)
        if packed is not None:
            values = packed + row * (T + 1)
            N = tl.maximum(N, tl.max(n, 0))
            tl.store(values + n, value, n > 0)
            tl.debug_barrier()
            even = tl.load(values + 2 * n, (n > 0) & (2 * n <= N), other=0)
            odd = tl.load(values + 2 * n + 1, (n > 0) & (2 * n < N), other=0)
            power = _power(n, DECAY, LOG_DECAY)
            value -= power * even + _power(n + 1, DECAY, LOG_DECAY) * odd
            earliest = earliest_before + tl.cumsum(even + odd, 0)
            earliest_before = _last(earliest, place, BLOCK)
        trace = _decaying_sum(decay, value, recent_before, place)
        recent_before = _last(trace, place, BLOCK)
        if packed is not None:
            trace += _power(n - 1, DECAY, LOG_DECAY) * earliest
        trace = tl.where(signed_n > 0, trace, 0)
        if flags is not None:
            trace = direct + tl.where(flag & 4 != 0, trace, 0)
        tl.store(z + token, trace, inside)


@triton.jit
def _traces(
    value, n, place, sums, T, recent_before, earliest_before,
    SUMS: tl.constexpr, DECAY: tl.constexpr, LOG_DECAY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the traces of a block of tokens, and R and E at its end, of which the block before had the others.

    With R the recent trace of x, and E the prefix sum of decay^(k-1) x[k], `both` is

        z[n] = R[n] + E[n // 2] - decay^(n - n // 2) R[n // 2]

    so R and E are written to `sums`, where other threads of the program find them. Padding has a decay of 1 and a value
    of 0.
    """
    decay = tl.where(n > 0, tl.full([BLOCK], DECAY, tl.float64), 1)
    trace = _decaying_sum(decay, value, recent_before, place)
    recent_before = _last(trace, place, BLOCK)
    if SUMS:
        earliest = earliest_before + tl.cumsum(value * _power(n - 1, DECAY, LOG_DECAY), 0)
        earliest_before = _last(earliest, place, BLOCK)
        tl.store(sums + n, trace, n > 0)
        tl.store(sums + T + 1 + n, earliest, n > 0)
        tl.debug_barrier()
        half = n // 2
        recent_half = tl.load(sums + half, half > 0, other=0)
        earliest_half = tl.load(sums + T + 1 + half, half > 0, other=0)
        trace = trace + earliest_half - _power(n - half, DECAY, LOG_DECAY) * recent_half
    return trace, recent_before, earliest_before


@triton.jit
def _chain(decay, value, next_decay, next_value):
    return decay * next_decay, value * next_decay + next_value


@triton.jit
def _decaying_sum(decay, value, before, place):
    """Return z[i] = decay[i] * z[i-1] + value[i], where z[-1] is `before`."""
    value = tl.where(place == 0, decay * before + value, value)
    _, trace = tl.associative_scan((decay, value), 0, _chain)
    return trace


@triton.jit
def _last(values, place, BLOCK: tl.constexpr):
    return tl.sum(tl.where(place == BLOCK - 1, values, 0), 0)


@triton.jit
def _power(exponent, DECAY: tl.constexpr, LOG_DECAY: tl.constexpr):
    """Return decay^exponent, with 0^0 = 1. Exponents below 0 belong to padding, and are read as 0."""
    exponent = tl.maximum(exponent, 0)
    if DECAY == 0:
        return (exponent == 0).to(tl.float64)
    else:
        return tl.exp(exponent.to(tl.float64) * tl.full([], LOG_DECAY, tl.float64))


@triton.jit
def _divide(value, total, TINY: tl.constexpr):
    """Return value / total, and 0 where everything that counts has been forgotten."""
    remembered = total >= TINY
    return tl.where(remembered, value / tl.where(remembered, total, 1), 0)
