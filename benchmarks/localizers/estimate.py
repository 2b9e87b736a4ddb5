"""Estimate a localizer's hit rate from the pass rates that a run logs, without the truth. No model.

Write V for the chance that a completion passes, given what is written so far. V starts at p, the pass rate, and is a
fair game: the next step moves it up as much as down. Three pass rates of continuations of failed completions follow.

- Cut without knowing where it went wrong: E[V | failed] = (p - E[V^2]) / (1 - p), at most p, as E[V^2] >= p^2. Random
  resets, or those always to the same step, pass at most as often as completions from the prompt.
- Cut at the first error, after which nothing passes: p E[sum over steps of (1 - r)] / (1 - p), r being the chance of
  each step to be right, in the completions that pass. As 1 - r <= -ln r, and these sum to -ln p at most, it is at most
  p ln(1 / p) / (1 - p). A chain of many slightly uncertain steps gets there; a few shaky ones stay below, and so do
  problems of which some are easy and some are hard, since the bound is concave in p.
- With a localizer that is right with probability q and names a random step otherwise: the mix of both. Hence the
  lower bound of q below, and q itself where the pass rate after an oracle's resets is known from somewhere.

So what is estimated is the hit rate of the noisy oracle whose cuts are worth as much. A localizer whose misses are a
step or two before the error comes out above its own hit rate, and one whose misses come late comes out below.

These hold for `seed_selection="random"` and `reset_offset=0`. Where a wrong step may still pass with a constant chance
(a guess in multiple choice), the bounds hold as they are: they only get looser.
"""

import math


def oracle_bound(base: float) -> float:
    """Return the most that continuations cut at the first error can pass: p ln(1 / p) / (1 - p).

    `base` is p, the share of completions from the prompt that pass. The bound is 0 at p = 0 and 1 at p = 1.
    """
    if not 0 <= base <= 1:
        raise ValueError(f"a pass rate is between 0 and 1, got {base}")
    if base in (0, 1):
        return float(base)
    return base * -math.log(base) / (1 - base)


def hit_rate_at_least(base: float, suffix: float, random: float | None = None) -> float:
    """Return a lower bound of the hit rate of the noisy oracle that is worth as much, in [0, 1], from pass rates alone.

    Args:
        base: `reset/base_pass_rate`, of completions from the prompt.
        suffix: `reset/suffix_pass_rate`, of continuations after the localizer's resets.
        random: that of random resets, as RRPO logs it. None takes the most that it can be, `base`, which makes the
            bound lower.
    """
    floor = base if random is None else random
    return hit_rate_between(suffix, floor, oracle_bound(base))


def hit_rate_between(suffix: float, random: float, oracle: float) -> float:
    """Return the hit rate at which a mix of random resets and an oracle's passes as often as `suffix`, in [0, 1].

    Args:
        suffix, random, oracle: pass rates after the resets of the localizer, of chance and of an oracle. Chance that
            names the right step counts as a miss here.
    """
    if oracle <= random:
        return 0.0
    return min(max((suffix - random) / (oracle - random), 0.0), 1.0)
