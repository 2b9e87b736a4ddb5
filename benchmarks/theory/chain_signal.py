"""Compute when a reset can help at all: the signal of one completion on a chain of independent steps.

    python -m benchmarks.theory.chain_signal        # prints the table

A chain passes if all of its n steps are right, each with probability q, so with p = q^n. The group-normalized advantage
of a completion whose step t is right, less that of one whose step t is wrong, is sqrt(p / (1 - p)) / q: all the signal
that there is about a step. It vanishes with p, and the noise does not: all n steps carry the advantage, of variance 1.

A completion that continues a right prefix of h - 1 steps passes with q^(n - h + 1) and says as much about n - h + 1
steps. First errors come at h with probability (1 - q) q^(h - 1) / (1 - p); the furthest of m failures has the m-th
power of their distribution function. Two figures follow, for resets to the first error over completions from the start:

- the ratio of squared signals, summed over the steps of a completion (what samples are worth, the fresh ones being 1);
- how often a group is informative, right and wrong completions being in it, for GRPO's group of 8 from the prompt, and
  for SRPO's two groups of 4 (1x4 of G = 8), one from the prompt and one after the prefix. Here the smaller groups have
  to make good what they lose. With few failures in a group, the furthest of four overstates what there is to choose.
"""

import itertools
import math


def pass_probability(reliability: float, steps: int) -> float:
    return reliability**steps


def first_error_distribution(reliability: float, steps: int, furthest_of: int = 1) -> list[float]:
    """Return for step 1 .. `steps` the probability that a failed chain's first error is there.

    `furthest_of`: take the furthest first error of so many independent failed chains.
    """
    failed = 1 - pass_probability(reliability, steps)
    reached = [(1 - reliability**step) / failed for step in range(steps + 1)]  # the error is at `step` or before
    return [after**furthest_of - before**furthest_of for before, after in itertools.pairwise(reached)]


def informative(probability: float, group_size: int) -> float:
    """Return how often a group has both right and wrong completions."""
    return 1 - probability**group_size - (1 - probability) ** group_size


def signal_ratio(reliability: float, steps: int, furthest_of: int = 1) -> float:
    """Return the squared signal of a completion after a reset to the first error, over that of one from the prompt."""

    def signal(left: int) -> float:
        passes = pass_probability(reliability, left)
        return left * passes / (1 - passes)

    errors = first_error_distribution(reliability, steps, furthest_of)
    return math.fsum(share * signal(steps - index) for index, share in enumerate(errors)) / signal(steps)


def informative_after_reset(reliability: float, steps: int, group_size: int, furthest_of: int = 1) -> float:
    errors = first_error_distribution(reliability, steps, furthest_of)
    return math.fsum(
        share * informative(pass_probability(reliability, steps - index), group_size)
        for index, share in enumerate(errors)
    )


def main() -> None:
    print("| steps | pass rate | groups of 8 | of 4 | of 4, reset | furthest of 4 | signal, reset | furthest of 4 |")
    print("|---|---|---|---|---|---|---|---|")
    reliability = 0.45  # the testbed's uncertain facts; only they count as steps here
    for steps in (1, 2, 3, 4, 6, 8):
        fresh = pass_probability(reliability, steps)
        groups = [informative(fresh, 8), informative(fresh, 4)]
        groups += [informative_after_reset(reliability, steps, 4, m) for m in (1, 4)]
        signals = [signal_ratio(reliability, steps, m) for m in (1, 4)]
        cells = [
            str(steps),
            f"{fresh:.3f}",
            *(f"{share:.0%}" for share in groups),
            *(f"{signal:.2f}" for signal in signals),
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
