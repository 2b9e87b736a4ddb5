"""Compute the two kernels that decay as one launch of a GPU kernel each way: a contestant, not what training uses.

    python -m benchmarks.cost.triton_kernels     # compile for a Hopper GPU, which needs no GPU

`fused_trace` takes and returns what `credit_trl.traces.eligibility_trace` does, for `recent` and `both`. One program
walks a row of tokens, a block at a time, and keeps the sums between blocks in registers. The gradient is the same walk
from the row's end, with the transposed weights. No program writes what another one reads, and nothing is added
atomically, so results are deterministic. `README.md` says what has run so far and what is to be measured.

Shape suffixes: B completions, T completion tokens (padded).
"""

import itertools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from credit_trl.traces.kernels import check_arguments

BLOCK = 1024  # tokens of a step of the walk
LAUNCH = dict(num_warps=4, num_stages=1)  # one stage: no load may move ahead of the barrier before it


def fused_trace(
    x: torch.Tensor,
    mask: torch.Tensor,
    *,
    decay: float,
    kernel: str = "recent",
    eligible: torch.Tensor | None = None,
    normalize: bool = False,
) -> torch.Tensor:
    """Return what `eligibility_trace` returns for the same arguments, with `kernel` either "recent" or "both".

    Differentiable in `x`, any number of times. Raises `ValueError` as `eligibility_trace` does, and for other kernels.
    """
    check_arguments(mask, decay, kernel, x=x, eligible=eligible)
    if kernel not in ("recent", "both"):
        raise ValueError(f"kernel must be recent or both, got {kernel!r}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}")
    column_BT = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    weight_BT = torch.empty(x.shape, dtype=_computed_in(x), device=x.device) if normalize else None
    return FusedTrace.apply(x, column_BT, weight_BT, (mask, eligible), decay, kernel == "both", False)


class FusedTrace(torch.autograd.Function):
    """Multiply values by the weights w(t, k) of their row, or by the transpose: each is the gradient of the other.

    `FusedTrace.apply` takes

    - x: (B, T). Differentiable, any number of times.
    - column: (B, T) int32: n at its row's n-th loss token if its value counts, -n if it does not, 0 elsewhere.
    - weight: (B, T), the sums of weights that the trace is divided by, or None.
    - marks: the mask and the eligible tokens (or None), from which this call fills `column` and `weight`. None where an
      earlier call has filled them.
    - decay: in [0, 1].
    - both: the weight of token k at token t is `max(decay^(t-k), decay^(k-1))`, else `decay^(t-k)`, for 1 <= k <= t.
    - transposed: w(k, t) in place of w(t, k).

    and returns (B, T) in the dtype of `x`.
    """

    @staticmethod
    def forward(ctx, x_BT, column_BT, weight_BT, marks, decay, both, transposed):
        ctx.save_for_backward(column_BT, weight_BT)
        ctx.gradient_options = None, decay, both, not transposed
        ctx.set_materialize_grads(False)
        B, T = x_BT.shape
        dtype = _computed_in(x_BT)
        x_BT, z_BT = x_BT.contiguous(), torch.empty_like(x_BT, memory_format=torch.contiguous_format)
        options = _constants(decay, dtype) | LAUNCH
        with torch.cuda.device_of(x_BT):
            if transposed:
                packed_BN = torch.empty(B, T + 1, dtype=dtype, device=x_BT.device) if both else None
                _walk_back[(B,)](x_BT, column_BT, weight_BT, packed_BN, z_BT, T, **options)
            else:
                sums = (4 if weight_BT is not None and marks else 2) if both else 0
                packed_BSN = torch.empty(B, sums, T + 1, dtype=dtype, device=x_BT.device) if both else None
                mask_BT, eligible_BT = (_bytes(tensor) for tensor in marks or (None, None))
                _walk[(B,)](x_BT, mask_BT, eligible_BT, column_BT, weight_BT, packed_BSN, z_BT, T, SUMS=sums, **options)
        return z_BT

    @staticmethod
    def backward(ctx, gradient_BT):
        if gradient_BT is not None:
            gradient_BT = FusedTrace.apply(gradient_BT, *ctx.saved_tensors, *ctx.gradient_options)
        return gradient_BT, None, None, None, None, None, None


def _computed_in(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _constants(decay: float, dtype: torch.dtype) -> dict[str, Any]:
    """Return what is compiled into a program: a launch would round a float among its arguments to float32."""
    return dict(
        DECAY=decay,
        LOG_DECAY=math.log(decay) if decay else 0.0,
        DTYPE=tl.float64 if dtype == torch.float64 else tl.float32,
        TINY=torch.finfo(dtype).tiny,
        BLOCK=BLOCK,
    )


def _bytes(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return a tensor that a program can read: contiguous, and bytes for booleans, which share their memory."""
    if mask is None:
        return None
    return mask.contiguous().view(torch.uint8) if mask.dtype == torch.bool else mask.contiguous()


@triton.jit
def _walk(
    x, mask, eligible, column, weight, packed, z, T,
    SUMS: tl.constexpr, DECAY: tl.constexpr, LOG_DECAY: tl.constexpr, DTYPE: tl.constexpr, TINY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the traces of a row. `packed` has SUMS rows of T + 1 numbers, the n-th for the n-th loss token.

    With R the recent trace of x, and E the prefix sum of decay^(k-1) x[k], `both` is

        z[n] = R[n] + E[n // 2] - decay^(n - n // 2) R[n // 2]

    so R and E are written where other threads of the program find them. Padding has a decay of 1 and a value of 0.
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    recent_before = tl.full([], 0, DTYPE)
    earliest_before = tl.full([], 0, DTYPE)
    recent_weight_before = tl.full([], 0, DTYPE)
    earliest_weight_before = tl.full([], 0, DTYPE)
    clock = tl.full([], 0, tl.int32)
    for start in range(0, T, BLOCK):
        inside = start + place < T
        token = row * T + start + place
        value = tl.load(x + token, inside, other=0).to(DTYPE)
        if mask is None:
            signed_n = tl.load(column + token, inside, other=0)
        else:
            loss = tl.load(mask + token, inside, other=0) != 0
            counted = loss & (tl.abs(value) < float("inf"))
            if eligible is not None:
                counted = counted & (tl.load(eligible + token, inside, other=0) != 0)
            n = clock + tl.cumsum(loss.to(tl.int32), 0)
            clock = tl.max(n, 0)
            signed_n = tl.where(loss, tl.where(counted, n, -n), 0)
            tl.store(column + token, signed_n, inside)
        n = tl.abs(signed_n)
        value = tl.where(signed_n > 0, value, 0)
        decay = tl.where(n > 0, tl.full([BLOCK], DECAY, DTYPE), 1)
        trace = _decaying_sum(decay, value, recent_before, place)
        recent_before = _last(trace, place, BLOCK)
        if SUMS:
            sums = packed + row * SUMS * (T + 1)
            earliest = earliest_before + tl.cumsum(value * _power(n - 1, DECAY, LOG_DECAY, DTYPE), 0)
            earliest_before = _last(earliest, place, BLOCK)
            trace = _add_earliest(trace, earliest, n, sums, T, DECAY, LOG_DECAY, DTYPE)
        if weight is not None:
            if mask is None:
                total = tl.load(weight + token, inside, other=0)
            else:
                one = (signed_n > 0).to(DTYPE)
                total = _decaying_sum(decay, one, recent_weight_before, place)
                recent_weight_before = _last(total, place, BLOCK)
                if SUMS:
                    earliest = earliest_weight_before + tl.cumsum(one * _power(n - 1, DECAY, LOG_DECAY, DTYPE), 0)
                    earliest_weight_before = _last(earliest, place, BLOCK)
                    total = _add_earliest(total, earliest, n, sums + 2 * (T + 1), T, DECAY, LOG_DECAY, DTYPE)
                tl.store(weight + token, total, inside)
            trace = _divide(trace, total, TINY)
        tl.store(z + token, tl.where(n > 0, trace, 0), inside)


@triton.jit
def _walk_back(
    x, column, weight, packed, z, T,
    DECAY: tl.constexpr, LOG_DECAY: tl.constexpr, DTYPE: tl.constexpr, TINY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the transposed traces of a row, from its last token to its first.

    Transposed, the steps of `_walk` go backward. For `both`, token n adds to three sums:

    - the recent one at n: x[n];
    - the recent one at n // 2: -decay^(n - n // 2) x[n];
    - the earliest one at n // 2: x[n].

    Token n therefore collects from the tokens 2n and 2n + 1, which the walk has met before. A scan that runs backward
    is not used: the tokens themselves are read in the opposite order.
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    recent_before = tl.full([], 0, DTYPE)
    earliest_before = tl.full([], 0, DTYPE)
    N = tl.full([], 0, tl.int32)
    for start in range(0, T, BLOCK):
        inside = start + place < T
        token = row * T + T - 1 - start - place
        signed_n = tl.load(column + token, inside, other=0)
        n = tl.abs(signed_n)
        value = tl.load(x + token, inside, other=0).to(DTYPE)
        if weight is not None:
            value = _divide(value, tl.load(weight + token, inside, other=0), TINY)
        value = tl.where(n > 0, value, 0)
        decay = tl.where(n > 0, tl.full([BLOCK], DECAY, DTYPE), 1)
        if packed is not None:
            values = packed + row * (T + 1)
            N = tl.maximum(N, tl.max(n, 0))
            tl.store(values + n, value, n > 0)
            tl.debug_barrier()
            even = tl.load(values + 2 * n, (n > 0) & (2 * n <= N), other=0)
            odd = tl.load(values + 2 * n + 1, (n > 0) & (2 * n < N), other=0)
            power = _power(n, DECAY, LOG_DECAY, DTYPE)
            value -= power * even + _power(n + 1, DECAY, LOG_DECAY, DTYPE) * odd
            earliest = earliest_before + tl.cumsum(even + odd, 0)
            earliest_before = _last(earliest, place, BLOCK)
        trace = _decaying_sum(decay, value, recent_before, place)
        recent_before = _last(trace, place, BLOCK)
        if packed is not None:
            trace += _power(n - 1, DECAY, LOG_DECAY, DTYPE) * earliest
        tl.store(z + token, tl.where(signed_n > 0, trace, 0), inside)


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
def _power(exponent, DECAY: tl.constexpr, LOG_DECAY: tl.constexpr, DTYPE: tl.constexpr):
    """Return decay^exponent, with 0^0 = 1. Exponents below 0 belong to padding, and are read as 0."""
    exponent = tl.maximum(exponent, 0)
    if DECAY == 0:
        return (exponent == 0).to(DTYPE)
    else:
        return tl.exp(exponent.to(DTYPE) * tl.full([], LOG_DECAY, DTYPE))


@triton.jit
def _add_earliest(
    recent, earliest, n, sums, T, DECAY: tl.constexpr, LOG_DECAY: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """Return the trace `both` of the tokens n from their two sums, which are written to `sums` and read at n // 2."""
    tl.store(sums + n, recent, n > 0)
    tl.store(sums + T + 1 + n, earliest, n > 0)
    tl.debug_barrier()
    half = n // 2
    recent_half = tl.load(sums + half, half > 0, other=0)
    earliest_half = tl.load(sums + T + 1 + half, half > 0, other=0)
    return recent + earliest_half - _power(n - half, DECAY, LOG_DECAY, DTYPE) * recent_half


@triton.jit
def _divide(value, total, TINY: tl.constexpr):
    """Return value / total, and 0 where everything that counts has been forgotten."""
    remembered = total >= TINY
    return tl.where(remembered, value / tl.where(remembered, total, 1), 0)


def main() -> None:
    """Compile every variant, and print the shared memory and the barriers of each."""
    print(
        "| kernel | fills the marks | dtype | both | normalize | shared memory, bytes | barriers |\n" + "|---" * 7 + "|"
    )
    variants = ((_walk, True), (_walk, False), (_walk_back, False))
    for (kernel, marks), dtype, both, normalize in itertools.product(
        variants, (torch.float32, torch.float64), (False, True), (False, True)
    ):
        number = "*fp32" if dtype == torch.float32 else "*fp64"
        given = {"x": number, "column": "*i32", "z": number, "T": "i32"}
        given |= {"weight": number} if normalize else {}
        given |= {"packed": number} if both else {}
        given |= {"mask": "*fp32", "eligible": "*u8"} if marks else {}
        constants = _constants(0.99, dtype) | {"SUMS": (4 if normalize and marks else 2) if both else 0}
        source = ASTSource(
            fn=kernel,
            signature={name: given.get(name, "constexpr") for name in kernel.arg_names},
            constexprs={name: constants.get(name) for name in kernel.arg_names if name not in given},
            # As where T and all addresses are multiples of 16.
            attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in given},
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=LAUNCH)
        barriers = compiled.asm["ptx"].count("bar.sync")
        cells = kernel.__name__, marks, dtype, both, normalize, compiled.metadata.shared, barriers
        print("|", " | ".join(map(str, cells)), "|")


if __name__ == "__main__":
    main()
