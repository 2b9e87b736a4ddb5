"""Estimate what sampled completions say about a model: pass@k, mean@k, maj@k, and their intervals.

P counts problems, N the samples drawn for each, k the samples that a metric is about (k <= N). Every estimate of a
problem is the exact expectation over all subsets of k of its N samples, so that it does not depend on their order.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction
from math import comb

import numpy as np
from numpy.typing import ArrayLike

NUM_RESAMPLES = 10_000
_DRAWS_AT_A_TIME = 2**22


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: int) -> np.ndarray:
    """Return the unbiased estimate of pass@k (arXiv 2107.03374, eq. 1): the chance that one of k samples is correct.

    It is 1 - C(n - c, k) / C(n, k), the share of the subsets of k samples with a correct one, as a product of k
    factors in [0, 1]: nothing overflows.

    Args:
        num_samples: n, samples drawn for each problem; any shape, such as (P,), or one number for all problems.
        num_correct: c, how many of them are correct; broadcasts with `num_samples`.
        k: samples that the metric is about; at least 1, and at most the smallest `num_samples`.

    Returns the estimates, of the broadcast shape. Raises `ValueError` for counts that cannot be.
    """
    n, c = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
    if not (np.issubdtype(n.dtype, np.integer) and np.issubdtype(c.dtype, np.integer)):
        raise ValueError(f"num_samples and num_correct are counts: they must be integers, got {n.dtype} and {c.dtype}")
    if np.any(c < 0) or np.any(c > n):
        raise ValueError("num_correct must be between 0 and num_samples for every problem")
    if k < 1 or np.any(n < k):
        raise ValueError(
            f"k must be between 1 and the number of samples of every problem, got k={k}: draw more samples"
        )
    drawn = np.arange(k)
    # Once no wrong sample is left to draw the factor is 0, and so is the product.
    all_wrong = np.clip((n - c)[..., None] - drawn, 0, None) / (n[..., None] - drawn)
    return 1 - all_wrong.prod(-1)


def mean_at_k(scores: ArrayLike) -> np.ndarray:
    """Return mean@k, also called avg@k: the mean score of each problem's k samples.

    `scores` has shape (..., k). Where scores are 0 or 1 this is pass@1; a scorer that gives parts of a point counts
    them here only.
    """
    return np.asarray(scores, dtype=float).mean(-1)


def maj_at_k(votes: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """Return maj@k of a problem: the chance that the answer with the most votes among k of its samples is correct.

    This is the expectation over all subsets of k samples, each as likely, and over ties: of the answers that share
    the most votes one is drawn with equal chances. Correct samples all vote for the same answer, however it is
    written. Only samples with an answer vote, and where none of a subset has one the majority is wrong.

    Args:
        votes: answer of each of the N samples, such that equal answers compare equal; `None` for no answer.
        correct: True for each sample that is correct. A sample without an answer must not be.
        k: samples that vote, between 1 and N.

    Raises `ValueError` for a k out of range, for lengths that differ, and for a correct sample without an answer.
    """
    n = len(votes)
    if len(correct) != n:
        raise ValueError(f"there are {n} votes and {len(correct)} marks of correctness: one of each for every sample")
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the number of samples, {n}, got k={k}")
    if any(right and vote is None for vote, right in zip(votes, correct, strict=True)):
        raise ValueError("a sample without an answer is marked as correct: give every correct sample its answer")
    right = sum(map(bool, correct))
    silent = sum(vote is None for vote in votes)
    wrong = Counter(vote for vote, is_right in zip(votes, correct, strict=True) if vote is not None and not is_right)

    favorable = Fraction(0)
    for top in range(max(1, k - (n - right)), min(right, k) + 1):
        # Subsets with `top` correct votes, and no wrong answer with more: (others drawn, answers that tie) -> ways.
        ways = {(others, 0): comb(silent, others) for others in range(min(silent, k - top) + 1)}
        for count in wrong.values():
            grown: Counter[tuple[int, int]] = Counter()
            for (others, ties), number in ways.items():
                for extra in range(min(count, top, k - top - others) + 1):
                    grown[others + extra, ties + (extra == top)] += number * comb(count, extra)
            ways = grown
        won = sum(Fraction(number, ties + 1) for (others, ties), number in ways.items() if others == k - top)
        favorable += comb(right, top) * won
    return float(favorable / comb(n, k))


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile bootstrap interval of the mean over problems.

    Problems are drawn with replacement, each with the estimate from all of its samples. The interval says how the mean
    would vary over other problems and samples of the same kind; that of a single problem has no width.

    Args:
        values: estimates of the problems, shape (..., P). All rows are resampled alike.
        level: share of the resampled means that the interval covers.
        num_resamples: number of means.
        seed: seed of the resampling; the same one gives the same interval.

    Returns the lower and the upper ends, each of shape (...). Raises `ValueError` if there is no problem.
    """
    array = np.asarray(values, dtype=float)
    problems = array.shape[-1]
    if problems == 0:
        raise ValueError("there are no problems to draw from")
    generator = np.random.default_rng(seed)
    at_a_time = max(1, _DRAWS_AT_A_TIME // problems)
    means = []
    for start in range(0, num_resamples, at_a_time):
        drawn = generator.integers(0, problems, (min(at_a_time, num_resamples - start), problems))
        means.append(array[..., drawn].mean(-1))
    tail = 50 * (1 - level)
    low, high = np.percentile(np.concatenate(means, axis=-1), [tail, 100 - tail], axis=-1)
    return low, high
