"""pass@k, mean@k and maj@k against every subset written out, and the bootstrap against what it estimates."""

from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from credit_trl.evaluation import estimators
from credit_trl.evaluation.estimators import bootstrap_interval, maj_at_k, mean_at_k, pass_at_k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (10, 0, 5, 0.0),
        (10, 10, 1, 1.0),
        (10, 3, 1, 0.3),
        (10, 3, 8, 1.0),  # only 7 are wrong
        (5, 2, 3, 1 - 1 / 10),
        (200, 40, 10, 1 - comb(160, 10) / comb(200, 10)),
        (200, 1, 100, 0.5),
    ],
)
def test_pass_at_k_values(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, rel=1e-12)


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n in range(1, 7):
        for c, k in product(range(n + 1), range(1, n + 1)):
            correct = [index < c for index in range(n)]
            share = np.mean([any(subset) for subset in combinations(correct, k)])
            assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12), (n, c, k)


def test_pass_at_k_takes_arrays():
    n, c = np.array([8, 16, 16]), np.array([1, 0, 12])
    assert pass_at_k(n, c, 5).tolist() == [float(pass_at_k(*pair, 5)) for pair in zip(n, c, strict=True)]
    assert pass_at_k(16, [[0, 1], [2, 16]], 4).shape == (2, 2)


def test_pass_at_k_of_many_samples_does_not_overflow():
    with np.errstate(all="raise"):
        # C(100000, 50000) is far beyond what a float holds.
        assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)
        assert pass_at_k(100_000, 10, 1000) == pytest.approx(1 - comb(99_990, 1000) / comb(100_000, 1000))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0), ([8, 4], [1, 1], 6)])
def test_pass_at_k_refuses_counts_that_cannot_be(n, c, k):
    with pytest.raises(ValueError, match=r"must be between"):
        pass_at_k(n, c, k)


def test_pass_at_k_refuses_rates():
    with pytest.raises(ValueError, match="must be integers"):
        pass_at_k(4, 0.5, 1)


def test_mean_at_k_is_the_mean_over_subsets_of_any_size():
    scores = np.array([[1.0, 0.0, 0.01, 1.0], [0.0, 0.0, 0.0, 0.5]])
    assert mean_at_k(scores).tolist() == pytest.approx([2.01 / 4, 0.125])
    for k in range(1, 5):
        subsets = [np.mean([row[list(chosen)].mean() for chosen in combinations(range(4), k)]) for row in scores]
        assert mean_at_k(scores).tolist() == pytest.approx(subsets)


def majority_of_every_subset(votes, correct, k):
    values = []
    for subset in combinations(range(len(votes)), k):
        ballots: dict[object, int] = {}
        for index in subset:
            if votes[index] is not None:
                answer = "the correct one" if correct[index] else ("wrong", votes[index])
                ballots[answer] = ballots.get(answer, 0) + 1
        most = max(ballots.values(), default=0)
        winners = [answer for answer, number in ballots.items() if number == most]
        values.append(winners.count("the correct one") / len(winners) if winners else 0.0)
    return np.mean(values)


def test_maj_at_k_is_the_mean_over_every_subset_and_tie():
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        n = int(generator.integers(1, 8))
        votes = [[None, "a", "b", "c", "2a"][index] for index in generator.integers(0, 5, n)]
        correct = [vote in ("a", "2a") for vote in votes]  # two ways to write the same answer
        for k in range(1, n + 1):
            expected = majority_of_every_subset(votes, correct, k)
            assert maj_at_k(votes, correct, k) == pytest.approx(expected, abs=1e-12), (votes, k)
            seen.add(expected)
    assert len(seen) > 50


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        (["a", "a", "b"], 1.0),
        (["a", "b", "b"], 0.0),
        (["a", "b"], 1 / 2),
        (["a", "b", "c"], 1 / 3),
        (["a", "a", "b", "b", "c"], 1 / 2),
        (["a", None, None, None], 1.0),  # samples without an answer do not vote
        ([None, None], 0.0),
        (["b", "b"], 0.0),
    ],
)
def test_maj_at_k_of_all_samples(votes, expected):
    assert maj_at_k(votes, [vote == "a" for vote in votes], len(votes)) == pytest.approx(expected)


def test_maj_at_1_is_pass_at_1():
    votes = ["a", "b", None, "a", "c"]
    assert maj_at_k(votes, [vote == "a" for vote in votes], 1) == pytest.approx(float(pass_at_k(5, 2, 1)))


@pytest.mark.parametrize(
    ("votes", "correct", "k", "message"),
    [
        (["a"], [True], 2, "k must be between 1 and the number of samples, 1"),
        (["a"], [True], 0, "k must be between"),
        (["a", "b"], [True], 1, "2 votes and 1 marks"),
        ([None], [True], 1, "without an answer is marked as correct"),
    ],
)
def test_maj_at_k_refuses(votes, correct, k, message):
    with pytest.raises(ValueError, match=message):
        maj_at_k(votes, correct, k)


def test_the_interval_of_shares_is_that_of_the_binomial():
    values = np.array([1.0] * 120 + [0.0] * 280)
    low, high = bootstrap_interval(values)
    error = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert (low, high) == pytest.approx((0.3 - error, 0.3 + error), abs=0.004)
    narrow = bootstrap_interval(values, level=0.5)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.6745 * error / 1.96, abs=0.006)


def test_every_problem_is_drawn():
    # Of two problems, a quarter of the resamples has both times the one, a quarter both times the other.
    for values in ([0.0, 1.0], [1.0, 0.0]):
        assert bootstrap_interval(values, level=0.4) == (0.5, 0.5)
        assert bootstrap_interval(values, level=0.6) == (0.0, 1.0)


def test_the_interval_follows_its_seed_and_not_the_size_of_its_portions(monkeypatch):
    values = np.random.default_rng(1).random(50)
    first = bootstrap_interval(values, num_resamples=500)
    assert bootstrap_interval(values, num_resamples=500) == first
    assert bootstrap_interval(values, num_resamples=500, seed=1) != first
    monkeypatch.setattr(estimators, "_DRAWS_AT_A_TIME", 1)
    assert bootstrap_interval(values, num_resamples=500) == first


def test_rows_of_the_interval_are_resampled_alike():
    first, second = np.random.default_rng(2).random((2, 30))
    low, high = bootstrap_interval([first, second, first + 1], num_resamples=400)
    assert (low[0], high[0]) == pytest.approx(bootstrap_interval(first, num_resamples=400))
    assert (low[1], high[1]) == pytest.approx(bootstrap_interval(second, num_resamples=400))
    assert (low[2], high[2]) == pytest.approx((low[0] + 1, high[0] + 1))


def test_one_problem_has_an_interval_without_width_and_none_has_no_interval():
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no problems"):
        bootstrap_interval([])
