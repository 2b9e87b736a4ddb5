"""Compute what a loss reads under a trace as one GPU kernel each way, in Triton.

`credit.py` says what is computed: the log ratios of the tokens, each in its own bounds, their traces, the old
log-probabilities that hand these to a loss, and the sums that are logged. On a GPU these are some forty operations,
each of which waits for its launch. `fused.py` explains how a program walks a row.

Shape suffixes: B completions, T completion tokens (padded).
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from .fused import LAUNCH, _divide, _traces, _walk_back, as_bytes, constants

BOUNDS = {"trace": 0, "token": 1, "weight": 2}  # trust region -> how a token's own log ratio is bounded


def fused_old_logps(
    logps_BT: torch.Tensor,
    old_logps_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    eligible_BT: torch.Tensor,
    advantages: torch.Tensor,
    *,
    decay: float,
    both: bool,
    normalize: bool,
    trust_region: str,
    bounds: tuple[float, float],
    cap: float,
) -> tuple[torch.Tensor, tuple[tuple[str, ...], torch.Tensor]]:
    """Return what `credit.traced_old_logps` does, for the kernels that decay and gradients to all tokens of a trace.

    Args:
        logps_BT, old_logps_BT: (B, T) float32. The first is differentiable, once.
        mask_BT, eligible_BT: (B, T) booleans.
        advantages: (B, 1) or (B, T); of any shape where `trust_region` is not "token", which alone reads them.
        both: True for the kernel `both`, and False for `recent`.
        decay, normalize, trust_region, cap: as for `credit.traced_log_ratio`.
        bounds: the lowest and the highest log ratio of a token.

    Returns:
        (B, T) old log-probabilities, and the names and sums of `metrics.trace_totals`, in its order.
    """
    names: tuple[str, ...] = "tokens", "eligible", "weights", "excess", "excess_squared", "clipped", "non_finite"
    if trust_region == "trace":
        names = tuple(name for name in names if name != "clipped")
    totals_BN = torch.empty(len(logps_BT), len(names), dtype=torch.float64, device=logps_BT.device)
    options = dict(BOUND=BOUNDS[trust_region], LOW=bounds[0], HIGH=bounds[1], CAP=cap)
    read_BT = FusedCredit.apply(
        logps_BT, old_logps_BT, mask_BT, eligible_BT, advantages, totals_BN, decay, both, normalize, options
    )
    return read_BT, (names, totals_BN.sum(0, dtype=torch.float32))


class FusedCredit(torch.autograd.Function):
    """Replace old log-probabilities by those under a trace, and fill the sums of every row."""

    @staticmethod
    def forward(
        ctx, logps_BT, old_logps_BT, mask_BT, eligible_BT, advantages, totals_BN, decay, both, normalize, options
    ):
        B, T = logps_BT.shape
        device = logps_BT.device
        column_BT = torch.empty(B, T, dtype=torch.int32, device=device)
        flags_BT = torch.empty(B, T, dtype=torch.uint8, device=device)
        weight_BT, read_BT = (torch.empty(B, T, dtype=logps_BT.dtype, device=device) for _ in range(2))
        packed = torch.empty(B, 4, T + 1, dtype=torch.float64, device=device) if both else None
        constant = constants(decay, logps_BT.dtype) | dict(NORMALIZE=normalize)
        advantages = advantages.contiguous()
        of_tokens = advantages.dim() == 2 and advantages.shape[1] == T
        with torch.cuda.device_of(logps_BT):
            _walk_loss[(B,)](
                logps_BT.contiguous(), old_logps_BT.contiguous(), advantages, as_bytes(mask_BT), as_bytes(eligible_BT),
                column_BT, weight_BT, flags_BT, packed, read_BT, totals_BN, T,
                OF_TOKENS=of_tokens, SUMS=4 if both else 0, **options, **constant, **LAUNCH,
            )  # fmt: skip
        ctx.save_for_backward(column_BT, weight_BT, flags_BT)
        ctx.both, ctx.constant = both, constant
        return read_BT

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_BT):
        column_BT, weight_BT, flags_BT = ctx.saved_tensors
        B, T = column_BT.shape
        gradient_BT = gradient_BT.contiguous()
        result_BT = torch.empty_like(gradient_BT)
        packed = torch.empty(B, 1, T + 1, dtype=torch.float64, device=column_BT.device) if ctx.both else None
        with torch.cuda.device_of(gradient_BT):
            _walk_back[(B,)](
                gradient_BT, column_BT, weight_BT, flags_BT, packed, result_BT, T, **ctx.constant, **LAUNCH
            )
        return result_BT, *[None] * 9


@triton.jit(do_not_specialize=["T"])
def _walk_loss(
    logps, old_logps, advantages, mask, eligible, column, weight, flags, packed, read, totals, T,
    OF_TOKENS: tl.constexpr, BOUND: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, CAP: tl.constexpr,
    SUMS: tl.constexpr, NORMALIZE: tl.constexpr, DECAY: tl.constexpr, LOG_DECAY: tl.constexpr, TINY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write what a loss reads of a row, and what `_walk_back` needs.

    The flags of a token say where a gradient goes: 1, its log-probability is finite, so that the loss reads its trace;
    2, the trace is below the cap; 4, its own log ratio is in its bounds.
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    low, high, cap = tl.full([], LOW, tl.float32), tl.full([], HIGH, tl.float32), tl.full([], CAP, tl.float32)
    zero = tl.full([], 0, tl.float64)
    recent, earliest, recent_weight, earliest_weight = zero, zero, zero, zero  # at the end of the block before
    tokens, entered, weights, excesses, squares, clipped, non_finite = zero, zero, zero, zero, zero, zero, zero
    clock = tl.full([], 0, tl.int32)
    for start in range(0, T, BLOCK):
        inside = start + place < T
        token = row * T + start + place
        logp, old = tl.load(logps + token, inside, other=0), tl.load(old_logps + token, inside, other=0)
        loss = tl.load(mask + token, inside, other=0) != 0
        ratio = logp - old
        finite = tl.abs(ratio) < float("inf")
        factor = ratio
        if BOUND == 1:
            advantage = tl.load(advantages + (token if OF_TOKENS else row + 0 * place), inside, other=0).to(tl.float32)
            factor = tl.where(advantage > 0, tl.minimum(ratio, high), ratio)
            factor = tl.where(advantage < 0, tl.maximum(ratio, low), factor)
        elif BOUND == 2:
            factor = tl.minimum(ratio, high)
        within = factor == ratio
        enters = loss & finite & (tl.load(eligible + token, inside, other=0) != 0)
        n = clock + tl.cumsum(loss.to(tl.int32), 0)
        clock = tl.max(n, 0)
        n = tl.where(loss, n, 0)
        tl.store(column + token, tl.where(enters, n, -n), inside)

        sums = packed + row * SUMS * (T + 1) if SUMS else packed
        value = tl.where(enters, factor, 0).to(tl.float64)
        trace, recent, earliest = _traces(value, n, place, sums, T, recent, earliest, SUMS, DECAY, LOG_DECAY, BLOCK)
        sums = sums + 2 * (T + 1) if SUMS else sums
        total, recent_weight, earliest_weight = _traces(
            enters.to(tl.float64), n, place, sums, T, recent_weight, earliest_weight, SUMS, DECAY, LOG_DECAY, BLOCK
        )
        total = tl.where(loss, total, 0)
        if NORMALIZE:
            trace = _divide(trace, total, TINY)
            tl.store(weight + token, total, inside)
        trace = tl.where(loss, trace, 0).to(tl.float32)
        z = tl.minimum(trace, cap)
        readable = tl.abs(logp) < float("inf")
        tl.store(read + token, tl.where(readable, logp - z, old), inside)
        flag = readable.to(tl.uint8) + 2 * (trace <= cap).to(tl.uint8) + 4 * within.to(tl.uint8)
        tl.store(flags + token, flag, inside)

        excess = tl.exp(z.to(tl.float64)) - 1
        tokens += tl.sum(loss.to(tl.float64), 0)
        entered += tl.sum(enters.to(tl.float64), 0)
        weights += tl.sum(total, 0)
        excesses += tl.sum(excess, 0)
        squares += tl.sum(excess * excess, 0)
        clipped += tl.sum((loss & finite & (factor != ratio)).to(tl.float64), 0)
        non_finite += tl.sum((loss & (finite == 0)).to(tl.float64), 0)
    last = 6 if BOUND else 5
    totals += (last + 1) * row
    tl.store(totals, tokens)
    tl.store(totals + 1, entered)
    tl.store(totals + 2, weights)
    tl.store(totals + 3, excesses)
    tl.store(totals + 4, squares)
    if BOUND:
        tl.store(totals + 5, clipped)
    tl.store(totals + last, non_finite)
