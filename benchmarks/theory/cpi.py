"""Run conservative policy iteration with resets, on thought MDPs that can be solved exactly. NumPy only.

Notation: a thought MDP has H steps ("thoughts"), states s, actions a and a reward of 0 or 1 at the end. `d[t, s]` is
the probability that policy pi is in s before step t. A(s, pi') = Q(s, pi') - V(s) is the advantage over pi of one step
by pi' and pi afterwards. pi' is greedy: it takes a best action where that beats pi (the state is *improvable*) and is
pi elsewhere, so A(s, pi') lies in [0, 1]. CPI (Kakade and Langford, ICML 2002) moves pi to (1 - alpha) pi + alpha pi'.

**The paper's statement** (arXiv 2605.25507, Theorem 1), known here from public summaries only, without its proof: if
improvable states have an advantage of at least tau and resets along the policy's own trajectories reach one with
probability p, then random resets (CPI-RR) need O(1 / (tau p)^2) samples an iteration and improve by Omega((tau p)^2),
while resets to improvable states alone (CPI-CARO) need O(1 / tau^2) and improve by Omega(tau^2 p): 1/p^2 fewer samples
and 1/p more improvement. Horizon, reward range and number of actions enter both alike.

**Our reading.** A random reset picks one of the H steps of an on-policy trajectory uniformly; p is the probability that
its state is improvable; the oracle draws from the same distribution given that it is. A sample is one reset and two
rollouts from it, of pi' and of pi. pi' is taken from the exact values, so what is counted is the cost of *certifying*
an improvement, not that of finding pi' (which costs random resets 1/p more, since only resets to improvable states say
which action is better there). The oracle is free: by rejection it would cost 1/p roll-ins for each sample.

**What we derive.**

1. Dilution. The advantage of pi' under random resets is A = p A_c, with A_c that under the oracle's.
2. Improvement. By the performance difference lemma J(new) - J(pi) = alpha * sum over t of E[A(s, pi')], with s from the
   *new* policy's d[t]. Run both policies with the same randomness: they part with probability at most alpha q a step, q
   being the probability that pi' differs from pi where a random step of pi is. So d[t] moves by at most alpha H q in
   total variation, and

       J(new) - J(pi) >= alpha H (A - alpha H q).

   Who does not know q takes q = 1: alpha = A / (2H) improves by at least A^2 / 4 = p^2 A_c^2 / 4. The oracle knows that
   pi' differs where it resets, q = p: alpha = A / (2 H p) = A_c / (2H) improves by at least A^2 / (4p) = p A_c^2 / 4.
   That is the factor 1/p, and all of it is the step size. It needs no oracle: q can be counted along on-policy
   trajectories, where pi and pi' are both at hand. "Counted" below is random resets with that step size.
3. Samples. An estimate of A within half of its size takes of the order of variance / A^2 samples (and range / A).
   Hoeffding's inequality puts the squared range for the variance: 1 / (p A_c)^2 against 1 / A_c^2, the factor 1/p^2.
   But where pi' is pi there is nothing to roll out: the difference is 0. A sample that is not rolled out there has a
   variance of at most p, and with an empirical Bernstein bound the factor is 1/p. Where every reset is rolled out
   ("blind"), the variance does not shrink with p, and 1/p^2 remains under either bound, though under Bernstein's only
   for small p: above, its term of range / A is no smaller.
4. Together. Closing a fixed share of the gap to the optimum takes of the order of 1/alpha iterations: with random
   resets 1/p iterations of 1/p^2 samples, 1/p^3 in all; with 2. and 3., 1 iteration of 1/p samples.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SLACK = 1e-9  # advantages below it are rounding errors


class ThoughtMDP(NamedTuple):
    start: np.ndarray  # probabilities (S,) of the first state
    transition: np.ndarray  # probabilities (H, S, A, S) of the next state
    reward: np.ndarray  # reward (S,), 0 or 1, of the state after the last step


class Resets(NamedTuple):
    """Hold what one reset and its pair of rollouts can yield, and how likely that is.

    The outcomes: pi' is pi and nothing is rolled out; else the difference of the two returns, -1, 0 or 1.
    """

    probabilities: np.ndarray  # probabilities (4,) of the outcomes

    @property
    def advantage(self) -> float:
        return float(self.probabilities[3] - self.probabilities[1])


def values(mdp: ThoughtMDP, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return V (H + 1, S) and Q (H, S, A) of `policy` (H, S, A), computed backward from the reward."""
    H = len(policy)
    V = np.empty((H + 1, len(mdp.start)))
    Q = np.empty_like(policy)
    V[H] = mdp.reward
    for t in reversed(range(H)):
        Q[t] = mdp.transition[t] @ V[t + 1]
        V[t] = (policy[t] * Q[t]).sum(-1)
    return V, Q


def success(mdp: ThoughtMDP, policy: np.ndarray) -> float:
    """Return J, the expected reward from the start."""
    return float(mdp.start @ values(mdp, policy)[0][0])


def optimal_success(mdp: ThoughtMDP) -> float:
    V = mdp.reward
    for step in mdp.transition[::-1]:
        V = (step @ V).max(-1)
    return float(mdp.start @ V)


def visitation(mdp: ThoughtMDP, policy: np.ndarray) -> np.ndarray:
    """Return d (H, S), the distribution of the state before each step."""
    d = [mdp.start]
    for transition, choice in zip(mdp.transition[:-1], policy[:-1], strict=True):
        d.append(np.einsum("s,sa,sax->x", d[-1], choice, transition))
    return np.stack(d)


def improve(policy: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """Return pi', which takes the best action where that beats the policy and follows the policy elsewhere."""
    best = np.eye(policy.shape[-1])[Q.argmax(-1)]
    improvable = Q.max(-1) - (policy * Q).sum(-1) > SLACK
    return np.where(improvable[..., None], best, policy)


def mix(policy: np.ndarray, target: np.ndarray, alpha: float) -> np.ndarray:
    """Return CPI's update, (1 - alpha) policy + alpha target."""
    return (1 - alpha) * policy + alpha * target


def reset_distribution(mdp: ThoughtMDP, policy: np.ndarray, target: np.ndarray, *, oracle: bool) -> np.ndarray:
    """Return the distribution (H, S) of a random step of an on-policy trajectory.

    `oracle`: condition it on a state that is improvable.
    """
    resets = visitation(mdp, policy) / len(policy)
    if oracle:
        resets = resets * differs(policy, target)
        resets = resets / resets.sum()
    return resets


def differs(policy: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return where the two policies differ, (H, S); for the target of `improve` these are the improvable states."""
    return (policy != target).any(-1)


def reset_outcomes(
    mdp: ThoughtMDP, policy: np.ndarray, target: np.ndarray, resets: np.ndarray, *, blind: bool
) -> Resets:
    """Return the distribution of a sample. `blind`: resets where pi' is pi are rolled out like others.

    The rewards are 0 and 1, so the return of a rollout that starts with an action of pi' is a coin of bias Q(s, pi'),
    and drawing the coin has the same distribution as the rollout, however long it is.
    """
    V, Q = values(mdp, policy)
    ours, theirs = (target * Q).sum(-1), V[:-1]
    rolled = resets * (True if blind else differs(policy, target))
    up, down = (rolled * ours * (1 - theirs)).sum(), (rolled * theirs * (1 - ours)).sum()
    return Resets(np.array([max(0.0, 1 - rolled.sum()), down, max(0.0, rolled.sum() - up - down), up]))


def hoeffding_radius(squares: np.ndarray, mean: np.ndarray, n: int, delta: float) -> np.ndarray:
    """Return how close the mean of n samples in [-1, 1] is to its expectation, with probability 1 - delta."""
    return np.full_like(mean, np.sqrt(2 * np.log(2 / delta) / n))


def bernstein_radius(squares: np.ndarray, mean: np.ndarray, n: int, delta: float) -> np.ndarray:
    """Return the same from the samples' variance (Maurer and Pontil, COLT 2009, Theorem 4).

    `squares`: mean square of the samples.
    """
    variance = np.maximum(squares - mean**2, 0) * n / (n - 1)
    return np.sqrt(2 * variance * np.log(4 / delta) / n) + 14 * np.log(4 / delta) / (3 * (n - 1))


RADII = {"hoeffding": hoeffding_radius, "bernstein": bernstein_radius}


class Certificate(NamedTuple):
    """Certify for each seed that lower <= A <= 2 lower and q <= rolled_upper, with probability 1 - delta."""

    samples: np.ndarray
    lower: np.ndarray
    rolled_upper: np.ndarray


def checkpoints(delta: float) -> Iterator[tuple[int, float]]:
    """Yield how many samples to look at, each time 15% more, and the probability with which that look may mislead.

    The probabilities of the k-th look shrink like 1/k^2 and add up to `delta`: half of it for A and half for q.
    """
    n, k = 32, 1
    while True:
        yield n, delta / 2 * 6 / (np.pi * k) ** 2
        n, k = int(1.15 * n), k + 1


def certify(outcomes: Resets, radius: str, rng: np.random.Generator, seeds: int, *, delta: float = 0.1) -> Certificate:
    """Sample until the confidence radius is a third of the estimate, which then is within half of the advantage."""
    counts = np.zeros((seeds, 4), dtype=np.int64)
    samples, lower, upper = (np.zeros(seeds) for _ in range(3))
    running, drawn = np.ones(seeds, dtype=bool), 0
    for n, share in checkpoints(delta):
        counts[running] += rng.multinomial(n - drawn, outcomes.probabilities, size=int(running.sum()))
        drawn = n
        mean, squares = (counts[:, 3] - counts[:, 1]) / n, (counts[:, 3] + counts[:, 1]) / n
        rolled = 1 - counts[:, 0] / n
        width = RADII[radius](squares, mean, n, share)
        stops = running & (3 * width <= mean)
        samples[stops], lower[stops] = n, (mean - width)[stops]
        upper[stops] = np.minimum(1, rolled + RADII[radius](rolled, rolled, n, share))[stops]
        running &= ~stops
        if not running.any():
            return Certificate(samples, lower, upper)
    raise AssertionError("checkpoints never end")


def expected_samples(outcomes: Resets, radius: str, *, delta: float = 0.1) -> int:
    """Return where `certify` stops if every mean is its expectation: the bound with all its terms and logarithms."""
    mean, squares = np.array(outcomes.advantage), outcomes.probabilities[[1, 3]].sum()
    return next(n for n, share in checkpoints(delta) if 3 * RADII[radius](squares, mean, n, share) <= mean)


def step_size(advantage, H: int, q=1.0):
    """Return the alpha that maximizes alpha H (A - alpha H q), the lower bound on the gain for rewards in [0, 1]."""
    return np.minimum(1.0, advantage / (2 * H * q))


def graded(share: float, *, H: int = 4, noise: float = 0.1) -> ThoughtMDP:
    """Make an MDP whose grader checks one thought at random: the reward is 1 with probability (right thoughts) / H.

    Every thought is shaky with probability `share`, else solid. Action 0 gets a thought right but for `noise`; action 1
    does at a solid thought and never does at a shaky one. The advantage of an action is the same at every shaky thought
    whatever `share` is, so that p alone varies. States: (kind, right thoughts so far), then failed and passed.
    """
    failed, passed = 2 * (H + 1), 2 * (H + 1) + 1
    transition = np.zeros((H, passed + 1, 2, passed + 1))
    kinds = np.array([1 - share, share])
    for state in range(failed):
        kind, count = divmod(state, H + 1)
        for action in range(2):
            right = 0.0 if kind == 1 and action == 1 else 1 - noise
            for gain, chance in ((0, 1 - right), (1, right)):
                after = min(count + gain, H)
                for next_kind in range(2):
                    transition[:-1, state, action, next_kind * (H + 1) + after] += chance * kinds[next_kind]
                transition[-1, state, action, passed] += chance * after / H
                transition[-1, state, action, failed] += chance * (1 - after / H)
    transition[:, failed, :, failed] = transition[:, passed, :, passed] = 1
    start = np.zeros(passed + 1)
    start[[0, H + 1]] = kinds
    return ThoughtMDP(start, transition, np.eye(passed + 1)[passed])


def chain(share: float, *, H: int = 4, noise: float = 0.1) -> ThoughtMDP:
    """Make a chain of thoughts in which one wrong thought spoils the rest. Kinds and actions are those of `graded`.

    It is more like reasoning, but less of a controlled experiment: advantages depend on what may still go wrong, and
    p on how many trajectories are spoiled already. States: spoiled, then an intact chain at a solid or a shaky thought.
    """
    kinds = np.array([0, 1 - share, share])
    right = np.array([[0, 0], [1 - noise, 1 - noise], [1 - noise, 0]])  # (S, A)
    transition = right[..., None] * kinds + (1 - right)[..., None] * np.array([1, 0, 0])
    return ThoughtMDP(kinds, np.broadcast_to(transition, (H, 3, 2, 3)), np.array([0.0, 1.0, 1.0]))


def first_policy(mdp: ThoughtMDP, right: float = 0.25) -> np.ndarray:
    """Return a policy that takes action 0 with probability `right` where the actions differ, else either.

    Only shaky thoughts can be improved.
    """
    uniform = np.full(mdp.transition.shape[:3], 0.5)
    _, Q = values(mdp, uniform)
    differ = np.abs(Q[..., 0] - Q[..., 1]) > SLACK
    return np.where(differ[..., None], [right, 1 - right], uniform)


FAMILIES = {"graded": graded, "chain": chain}
