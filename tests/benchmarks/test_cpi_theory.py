"""Conservative policy iteration with resets: exact values, the bounds that are derived from them, and the exponents."""

import itertools

import numpy as np
import pytest
from tqdm.auto import tqdm

from benchmarks.theory.cpi import (
    FAMILIES,
    ThoughtMDP,
    certify,
    first_policy,
    improve,
    mix,
    optimal_success,
    reset_distribution,
    reset_outcomes,
    step_size,
    success,
    values,
    visitation,
)
from benchmarks.theory.cpi_theory import describe, measure, slope


def random_instance(seed: int, H: int = 3, S: int = 3, A: int = 2) -> tuple[ThoughtMDP, np.ndarray]:
    """An MDP and a policy with nothing special about them."""
    rng = np.random.default_rng(seed)
    reward = np.zeros(S)
    reward[rng.integers(S)] = 1
    mdp = ThoughtMDP(rng.dirichlet(np.ones(S)), rng.dirichlet(np.ones(S), size=(H, S, A)), reward)
    return mdp, rng.dirichlet(np.ones(A), size=(H, S))


def trajectories(mdp: ThoughtMDP, policy: np.ndarray):
    """Every trajectory, as (states, actions, probability): the slow way to any expectation."""
    H, S, A = policy.shape
    for states in itertools.product(range(S), repeat=H + 1):
        for actions in itertools.product(range(A), repeat=H):
            probability = mdp.start[states[0]]
            for t in range(H):
                probability *= policy[t, states[t], actions[t]]
                probability *= mdp.transition[t, states[t], actions[t], states[t + 1]]
            yield states, actions, probability


@pytest.mark.parametrize("seed", range(3))
def test_values_and_visits_are_those_of_all_trajectories(seed):
    mdp, policy = random_instance(seed)
    H, S, A = policy.shape
    visits, weight, returns = np.zeros((H, S)), np.zeros((H, S, A)), np.zeros((H, S, A))
    total = 0.0
    for states, actions, probability in trajectories(mdp, policy):
        reward = mdp.reward[states[-1]]
        total += probability * reward
        for t in range(H):
            visits[t, states[t]] += probability
            weight[t, states[t], actions[t]] += probability
            returns[t, states[t], actions[t]] += probability * reward
    V, Q = values(mdp, policy)
    np.testing.assert_allclose(Q, returns / weight)
    np.testing.assert_allclose(V[:-1], returns.sum(-1) / weight.sum(-1))
    np.testing.assert_allclose(success(mdp, policy), total)
    np.testing.assert_allclose(visitation(mdp, policy), visits)


@pytest.mark.parametrize("seed", range(3))
def test_no_deterministic_policy_beats_the_optimum_and_one_reaches_it(seed):
    mdp, policy = random_instance(seed, H=2)
    H, S, A = policy.shape
    choices = itertools.product(range(A), repeat=H * S)
    best = max(success(mdp, np.eye(A)[np.reshape(choice, (H, S))]) for choice in choices)
    assert optimal_success(mdp) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(5))
def test_performance_difference_is_the_advantage_on_the_new_policys_states(seed):
    mdp, old = random_instance(seed)
    _, new = random_instance(seed + 100)
    V, Q = values(mdp, old)
    advantage = (new * Q).sum(-1) - V[:-1]
    difference = (visitation(mdp, new) * advantage).sum()
    assert success(mdp, new) - success(mdp, old) == pytest.approx(difference, abs=1e-12)
    assert abs((visitation(mdp, old) * advantage).sum() - difference) > 1e-4  # the old policy's states will not do


def rollout(mdp: ThoughtMDP, policies: list[np.ndarray], t: int, state: int, rng) -> float:
    """Step by step from `state`: `policies[0]` acts first, `policies[1]` afterwards."""
    H, S, A = policies[0].shape
    for step in range(t, H):
        action = rng.choice(A, p=policies[int(step > t)][step, state])
        state = rng.choice(S, p=mdp.transition[step, state, action])
    return mdp.reward[state]


@pytest.mark.parametrize("oracle", [True, False])
@pytest.mark.parametrize("blind", [True, False])
def test_a_samples_law_is_that_of_resets_and_rollouts_step_by_step(oracle, blind):
    mdp = FAMILIES["chain"](0.5)
    policy = first_policy(mdp)
    target = improve(policy, values(mdp, policy)[1])
    rng, H, S = np.random.default_rng(0), *policy.shape[:2]
    counts = np.zeros(4)
    while counts.sum() < 3000:
        t, state = rng.integers(H), rng.choice(S, p=mdp.start)  # a random step of an on-policy trajectory
        for step in range(t):
            state = rng.choice(S, p=mdp.transition[step, state, rng.choice(2, p=policy[step, state])])
        improvable = (policy[t, state] != target[t, state]).any()
        if oracle and not improvable:
            continue
        if not improvable and not blind:
            counts[0] += 1
            continue
        difference = rollout(mdp, [target, policy], t, state, rng) - rollout(mdp, [policy, policy], t, state, rng)
        counts[2 + int(difference)] += 1
    resets = reset_distribution(mdp, policy, target, oracle=oracle)
    law = reset_outcomes(mdp, policy, target, resets, blind=blind).probabilities
    assert law.sum() == pytest.approx(1)
    deviation = np.sqrt(law * (1 - law) / counts.sum())
    assert (np.abs(counts / counts.sum() - law) <= 4 * deviation).all()


def test_the_oracles_advantage_is_diluted_by_p():
    for family, make in FAMILIES.items():
        mdp = make(1 / 8)
        policy = first_policy(mdp)
        target = improve(policy, values(mdp, policy)[1])
        exact = describe(mdp)
        for oracle, expected in ((True, exact["advantage_oracle"]), (False, exact["advantage_random"])):
            resets = reset_distribution(mdp, policy, target, oracle=oracle)
            outcomes = reset_outcomes(mdp, policy, target, resets, blind=False)
            assert outcomes.advantage == pytest.approx(expected)
        assert exact["advantage_random"] == pytest.approx(exact["p"] * exact["advantage_oracle"])
        if family == "graded":
            assert exact["p"] == pytest.approx(1 / 8)
            # A right thought rather than a wrong one, 3 times of 4, raises the share of right ones by 0.9 / 4.
            assert exact["advantage_oracle"] == pytest.approx(0.75 * 0.9 / 4)
        else:
            assert exact["p"] < 1 / 8  # spoilt chains cannot be improved


@pytest.mark.parametrize("seed", range(20))
def test_an_update_improves_by_what_its_step_size_promises(seed):
    """alpha H (A - alpha H q), for every step size up to the one at which that is 0, with q and without."""
    mdp, policy = random_instance(seed, S=4, A=3)
    H = len(policy)
    best = np.eye(3)[values(mdp, policy)[1].argmax(-1)]
    # Most states are at the optimum of their action already, so that q is well below 1.
    fixed = np.random.default_rng(seed).random((H, 4, 1)) < 0.6
    policy = np.where(fixed, best, policy)
    V, Q = values(mdp, policy)
    target = improve(policy, Q)
    d = visitation(mdp, policy) / H
    A, q = (d * ((target * Q).sum(-1) - V[:-1])).sum(), (d * (policy != target).any(-1)).sum()
    assert 0 < A <= q < 1
    for known in (1.0, q):
        chosen = step_size(A, H, known)
        assert chosen == pytest.approx(min(1, A / (2 * H * known)))
        for alpha in (chosen / 3, chosen, min(1, 1.9 * chosen)):
            gain = success(mdp, mix(policy, target, alpha)) - success(mdp, policy)
            assert gain >= alpha * H * (A - alpha * H * known) - 1e-12
            assert gain > 0


@pytest.mark.parametrize("radius", ["hoeffding", "bernstein"])
@pytest.mark.parametrize("oracle", [True, False])
def test_certified_bounds_hold(radius, oracle):
    """With confidence 90%: the advantage is between the lower bound and its double, and q below its upper bound."""
    mdp = FAMILIES["graded"](1 / 8)
    policy = first_policy(mdp)
    target = improve(policy, values(mdp, policy)[1])
    resets = reset_distribution(mdp, policy, target, oracle=oracle)
    outcomes = reset_outcomes(mdp, policy, target, resets, blind=False)
    certificate = certify(outcomes, radius, np.random.default_rng(1), 300)
    within = (certificate.lower <= outcomes.advantage) & (outcomes.advantage <= 2 * certificate.lower)
    q = 1.0 if oracle else 1 / 8
    assert (within & (q <= certificate.rolled_upper + 1e-12)).mean() >= 0.9
    # A bound that holds because nothing ever stops would be worthless.
    assert np.median(certificate.lower) > 0.55 * outcomes.advantage
    assert np.median(certificate.rolled_upper) < 1.5 * q


def test_slope():
    p = np.array([0.5, 0.25, 0.125])
    assert slope(p, 7 * p**-1.5) == pytest.approx(-1.5)


@pytest.fixture(scope="module")
def measured() -> dict:
    shares, rng = [2.0**-k for k in range(1, 6)], np.random.default_rng(0)
    return {family: measure(family, shares, 60, 0, rng, tqdm(disable=True)) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_random_resets_over_the_oracles_have_the_derived_exponents(measured, family):
    """The theorem's two factors, and what is left of them with variances and with a counted step size."""
    ratios = measured[family]["ratios"]
    hoeffding = ratios["random, Hoeffding / oracle, Hoeffding"]
    assert hoeffding["samples"]["exponent"] == pytest.approx(-2, abs=0.15)
    assert hoeffding["improvement"]["exponent"] == pytest.approx(1, abs=0.08)
    bernstein = ratios["random, Bernstein / oracle, Bernstein"]
    assert bernstein["samples"]["exponent"] == pytest.approx(-1, abs=0.2)
    assert bernstein["improvement"]["exponent"] == pytest.approx(1, abs=0.08)
    counted = ratios["random, Bernstein, counted / oracle, Bernstein"]
    assert counted["improvement"]["exponent"] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_exponent_is_the_one_of_the_exact_advantages(measured, family):
    for rule, quantities in measured[family]["rules"].items():
        for quantity, fitted in quantities.items():
            low, high = fitted["exponent_interval"]
            assert low - 0.1 <= fitted["exact_exponent"] <= high + 0.1, (rule, quantity)
            assert high - low < 0.1
