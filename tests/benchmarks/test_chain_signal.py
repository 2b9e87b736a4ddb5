"""The closed forms of when a reset can help, against chains that are drawn."""

import numpy as np
import pytest

from benchmarks.theory.chain_signal import first_error_distribution, informative_after_reset, signal_ratio

Q, STEPS, CHAINS = 0.6, 5, 200_000


@pytest.fixture(scope="module")
def chains():
    return np.random.default_rng(0).random((CHAINS, STEPS)) < Q


def first_errors(right):
    return np.where(right.all(1), STEPS, (~right).argmax(1))


@pytest.mark.parametrize("furthest_of", [1, 4])
def test_first_errors(chains, furthest_of):
    errors = first_errors(chains)
    failed = errors[errors < STEPS]
    failed = failed[: len(failed) // 4 * 4].reshape(-1, 4)[:, :furthest_of].max(1)
    drawn = np.bincount(failed, minlength=STEPS) / len(failed)
    assert first_error_distribution(Q, STEPS, furthest_of) == pytest.approx(drawn, abs=0.01)


def squared_signal(right):
    """Summed over the steps, from the advantages of one large group."""
    rewards = right.all(1).astype(float)
    advantages = (rewards - rewards.mean()) / rewards.std()
    return sum(
        (advantages[right[:, step]].mean() - advantages[~right[:, step]].mean()) ** 2 for step in range(right.shape[1])
    )


@pytest.mark.parametrize("furthest_of", [1, 4])
def test_the_ratio_of_signals(chains, furthest_of):
    after = [squared_signal(chains[:, error:]) for error in range(STEPS)]
    expected = np.dot(first_error_distribution(Q, STEPS, furthest_of), after) / squared_signal(chains)
    assert signal_ratio(Q, STEPS, furthest_of) == pytest.approx(expected, rel=0.03)
    assert signal_ratio(Q, 1) == pytest.approx(1)


@pytest.mark.parametrize("furthest_of", [1, 4])
def test_informative_groups(chains, furthest_of):
    errors = first_errors(chains)
    failed = errors[errors < STEPS]
    failed = failed[: len(failed) // 4 * 4].reshape(-1, 4)[:, :furthest_of].max(1)
    continued = chains[: 4 * len(failed)].reshape(-1, 4, STEPS)[: len(failed)]
    masked = np.arange(STEPS) < failed[:, None, None]
    passed = (continued | masked[: len(continued)]).all(2).sum(1)
    drawn = np.mean((passed > 0) & (passed < 4))
    assert informative_after_reset(Q, STEPS, 4, furthest_of) == pytest.approx(drawn, abs=0.01)
