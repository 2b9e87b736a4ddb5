"""What a traced loss reads, against loops over tokens written from the definitions, and where numbers run out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cost.operations import Operations
from credit_trl.traces.credit import (
    floored_advantages,
    old_logps_under_trace,
    traced_advantages,
    traced_log_ratio,
)
from credit_trl.traces.kernels import KERNELS, trace_weights
from tests.helpers.slow_traces import weight

LOW, HIGH = 0.1, 0.2
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
PLAIN = dict(
    decay=0.8, kernel="recent", normalize=False, trust_region="trace", epsilon_low=LOW, epsilon_high=HIGH
)  # fmt: skip


def batch():
    generator = torch.Generator().manual_seed(0)
    logps = -3 * torch.rand(3, 6, generator=generator)
    old_logps = logps - 0.5 * torch.randn(3, 6, generator=generator)
    eligible = torch.rand(3, 6, generator=generator) < 0.7
    return logps, old_logps, torch.tensor([1.0, -0.5, 1.0]), eligible


def bounded(log_ratio, advantage, trust_region):
    if trust_region == "weight":
        return min(log_ratio, math.log(HIGH))
    if trust_region == "token" and advantage > 0:
        return min(log_ratio, math.log(1 + HIGH))
    if trust_region == "token" and advantage < 0:
        return max(log_ratio, math.log(1 - LOW))
    return log_ratio


def slow_trace(logps, old_logps, advantages, eligible, *, decay, kernel, normalize, trust_region, **unused):
    z = torch.zeros(logps.shape, dtype=torch.float64)
    for row in range(len(logps)):
        tokens = [t for t in range(logps.shape[1]) if MASK[row, t]]
        for n_t, t in enumerate(tokens, 1):
            total = weights = 0.0
            for n_k, k in enumerate(tokens, 1):
                if eligible[row, k]:
                    own = (logps[row, k] - old_logps[row, k]).item()
                    total += weight(kernel, decay, n_t, n_k) * bounded(own, advantages[row].item(), trust_region)
                    weights += weight(kernel, decay, n_t, n_k)
            z[row, t] = total / weights if normalize and weights else total
    return z.float()


@pytest.mark.parametrize("kernel", ["identity", "recent", "both", "uniform"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("trust_region", ["trace", "token", "weight"])
def test_the_traced_log_ratio_is_that_of_a_loop(kernel, normalize, trust_region):
    logps, old_logps, advantages, eligible = batch()
    options = PLAIN | dict(kernel=kernel, normalize=normalize, trust_region=trust_region)
    z, counted = traced_log_ratio(logps, old_logps, MASK, advantages, eligible=eligible, **options)
    expected = slow_trace(logps, old_logps, advantages, eligible, **options)
    torch.testing.assert_close(z, expected, atol=1e-5, rtol=1e-5)
    # The mask's last row has no loss token, so that its tokens are counted nowhere.
    assert torch.equal(counted["eligible"], eligible) and not counted["non_finite"].any()
    own = logps - old_logps
    beyond = torch.tensor(
        [
            [bounded(x, a.item(), trust_region) != x for x in row]
            for row, a in zip(own.tolist(), advantages, strict=True)
        ]
    )
    if trust_region == "trace":
        assert "clipped" not in counted
    else:
        assert beyond.any()
        # Bounds in float32 may equal a value that they do not equal in Python's floats.
        assert torch.equal(counted["clipped"], beyond)


def test_every_loss_token_is_eligible_by_default():
    logps, old_logps, advantages, _ = batch()
    z, counted = traced_log_ratio(logps, old_logps, MASK, advantages, **PLAIN)
    expected = slow_trace(logps, old_logps, advantages, torch.ones(3, 6), **PLAIN)
    torch.testing.assert_close(z, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(counted["eligible"], MASK.bool())


@pytest.mark.parametrize("kernel", ["identity", "recent", "both", "uniform"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("trust_region", ["trace", "token", "weight"])
def test_an_own_gradient_reaches_the_tokens_own_factor_and_leaves_the_value(kernel, normalize, trust_region):
    logps, old_logps, advantages, eligible = batch()
    old_logps[0, 2] = -math.inf
    own = logps.clone().requires_grad_()
    options = PLAIN | dict(kernel=kernel, normalize=normalize, trust_region=trust_region, eligible=eligible)
    expected, counted_of_all = traced_log_ratio(logps, old_logps, MASK, advantages, **options)
    z, counted = traced_log_ratio(own, old_logps, MASK, advantages, gradient="own", **options)
    assert torch.equal(z, expected) and all(torch.equal(counted[name], counted_of_all[name]) for name in counted)
    incoming = torch.arange(1.0, 19.0).view(3, 6)
    (actual,) = torch.autograd.grad(z, own, incoming)
    learns = torch.zeros(3, 6)
    for row, t in MASK.nonzero().tolist():
        log_ratio = (logps[row, t] - old_logps[row, t]).item()
        within = bounded(log_ratio, advantages[row].item(), trust_region) == log_ratio
        learns[row, t] = within and math.isfinite(log_ratio) and eligible[row, t]
    assert torch.equal(actual, incoming * learns)
    assert learns.sum() < MASK.sum() and (learns.any() or trust_region == "weight")  # whose bound is below all of them


def columns(kernel, decay):
    """W[k] of the tokens of MASK, from loops over the definition."""
    sums = torch.zeros(3, 6)
    for row, N in enumerate(MASK.sum(1).tolist()):
        for n_k, k in enumerate(MASK[row].nonzero().flatten().tolist(), 1):
            sums[row, k] = sum(weight(kernel, decay, n_t, n_k) for n_t in range(1, N + 1))
    return sums


@pytest.mark.parametrize("kernel", ["identity", "recent", "both", "uniform"])
@pytest.mark.parametrize("trust_region", ["trace", "token", "weight"])
@pytest.mark.parametrize("decay", [0.0, 0.8, 1.0])
def test_divided_by_its_column_a_trace_is_that_of_a_loop(kernel, trust_region, decay):
    logps, old_logps, advantages, eligible = batch()
    old_logps[0, 2] = math.nan  # left out, and not counted among the eligible tokens of its row
    options = PLAIN | dict(decay=decay, kernel=kernel, trust_region=trust_region)
    weights = trace_weights(MASK, decay=decay, kernel=kernel)
    z, _ = traced_log_ratio(logps, old_logps, MASK, advantages, eligible=eligible, divided_by=weights, **options)
    finite = eligible & torch.isfinite(old_logps)
    sums, expected = columns(kernel, decay), torch.zeros(3, 6)
    for row in range(3):
        tokens = [t for t in range(6) if MASK[row, t]]
        share = len(tokens) / max(sum(finite[row, k].item() for k in tokens), 1)
        for n_t, t in enumerate(tokens, 1):
            for n_k, k in enumerate(tokens, 1):
                if finite[row, k]:
                    own = bounded((logps[row, k] - old_logps[row, k]).item(), advantages[row].item(), trust_region)
                    expected[row, t] += share * own * weight(kernel, decay, n_t, n_k) / sums[row, k]
    torch.testing.assert_close(z, expected, atol=1e-5, rtol=1e-5)


@st.composite
def on_policy_rows(draw):
    """Masks with holes and empty rows, any eligible tokens, any decay."""
    B, T = draw(st.integers(1, 3)), draw(st.integers(1, 24))
    bits = st.lists(st.booleans(), min_size=B * T, max_size=B * T)
    mask, eligible = (torch.tensor(draw(bits)).view(B, T) for _ in range(2))
    return mask, eligible, draw(st.sampled_from([0.0, 0.99, 1.0]) | st.floats(0, 1))


def equal_credit(logps, old_logps, mask, eligible, decay, kernel):
    options = PLAIN | dict(decay=decay, kernel=kernel, eligible=eligible)
    weights = trace_weights(mask, decay=decay, kernel=kernel)
    return traced_log_ratio(logps, old_logps, mask, torch.ones(len(mask)), divided_by=weights, **options)[0]


@settings(max_examples=150, deadline=None)
@given(on_policy_rows(), st.sampled_from(KERNELS), st.booleans())
def test_eligible_tokens_get_equal_credit_and_a_row_one_for_each_loss_token(rows, kernel, broken):
    mask, eligible, decay = rows
    old_logps = torch.zeros(mask.shape, dtype=torch.float64)
    if broken:
        old_logps[0, 0] = math.nan
    logps = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    z = equal_credit(logps, old_logps, mask, eligible, decay, kernel)
    (credit,) = torch.autograd.grad((z.exp() * mask).sum(), logps)
    counted = mask & eligible & torch.isfinite(old_logps)
    share = mask.sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(credit, (share * counted).double(), rtol=1e-5, atol=1e-6)
    assert torch.equal(z, torch.zeros_like(z))


@pytest.mark.parametrize("kernel", KERNELS)
def test_equal_credit_by_finite_differences(kernel):
    logps, _, _, eligible = batch()
    logps = logps.double().requires_grad_()
    for decay in (0.0, 0.8, 1.0):
        assert torch.autograd.gradcheck(
            lambda x, decay=decay: equal_credit(x, torch.zeros(3, 6), MASK, eligible, decay, kernel), (logps,)
        )


def test_equal_credit_leaves_a_token_alone_where_it_has_no_successors_and_is_a_mean_under_uniform():
    logps, old_logps, advantages, eligible = batch()
    ones = torch.ones(3, 6)
    for kernel, decay in (("identity", 0.8), ("recent", 0.0)):
        plain, _ = traced_log_ratio(logps, old_logps, MASK, advantages, **(PLAIN | dict(kernel=kernel, decay=decay)))
        assert torch.equal(equal_credit(logps, old_logps, MASK, ones, decay, kernel), plain)
    mean = PLAIN | dict(kernel="uniform", normalize=True, eligible=eligible)
    expected, _ = traced_log_ratio(logps, old_logps, MASK, advantages, **mean)
    actual = equal_credit(logps, old_logps, MASK, eligible, 0.8, "uniform")
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def test_equal_credit_takes_few_operations_and_waits_for_nothing():
    logps, mask = torch.zeros(2, 128, requires_grad=True), torch.ones(2, 128)
    weights, counts = trace_weights(mask, decay=0.99, kernel="recent"), []
    for divided_by in (None, weights):
        with Operations() as operations:
            z, _ = traced_log_ratio(logps, mask, mask, torch.ones(2), divided_by=divided_by, **PLAIN)
            z.backward(mask)
        assert operations.waits == 0
        counts.append(operations.count)
    assert counts[1] - counts[0] <= 11


def test_a_trace_at_its_cap_has_no_own_gradient():
    logps = torch.tensor([[15.0, 1.0, 15.0]], requires_grad=True)
    options = PLAIN | dict(decay=1.0, gradient="own")
    z, _ = traced_log_ratio(logps, torch.zeros(1, 3), torch.ones(1, 3), torch.ones(1), **options)
    (gradient,) = torch.autograd.grad(z.sum(), logps)
    assert z.tolist() == [[15.0, 16.0, 20.0]] and gradient.tolist() == [[1.0, 1.0, 0.0]]


def test_a_loss_finds_the_trace_in_the_difference_and_its_gradient_alone():
    logps, old_logps, advantages, _ = batch()
    gradients = []
    for through_the_loss in (False, True):
        own = logps.clone().requires_grad_()
        z, _ = traced_log_ratio(own, old_logps, MASK, advantages, **PLAIN)
        found = own - old_logps_under_trace(own, old_logps, z) if through_the_loss else z
        torch.testing.assert_close(found, z, atol=1e-6, rtol=0)
        gradients += torch.autograd.grad((found.exp() * MASK).sum(), own)
    torch.testing.assert_close(gradients[1], gradients[0])
    assert gradients[0].abs().max() > 1


@pytest.mark.parametrize("old", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_non_finite_log_ratio_is_left_out_even_where_its_bounded_value_is_finite(old, advantage):
    """An infinite log ratio would pass a token's own trust region as its bound."""
    logps, old_logps = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[old, -2.1, -3.0]])
    options = PLAIN | dict(decay=0.99, normalize=True, trust_region="token", epsilon_low=0.2)
    z, counted = traced_log_ratio(logps, old_logps, torch.ones(1, 3), torch.tensor([advantage]), **options)
    # Nothing before it; itself (0.1); itself (0) and 0.1 from one token back.
    torch.testing.assert_close(z, torch.tensor([[0.0, 0.1, 0.1 * 0.99 / (0.99 + 1)]]), atol=1e-5, rtol=0)
    assert counted["non_finite"].tolist() == [[True, False, False]]
    assert counted["eligible"].tolist() == [[False, True, True]]
    assert not counted["clipped"].any()


def test_minus_infinity_of_the_policy_itself_gives_the_losses_own_ratio():
    """exp(-inf) = 0 is a ratio that TRL can use; `logp - z` would have made it NaN."""
    logps, old_logps = torch.tensor([[-1.0, -float("inf"), -2.0]]), torch.tensor([[-1.1, -3.0, -2.0]])
    options = PLAIN | dict(decay=0.99, normalize=True)
    z, _ = traced_log_ratio(logps, old_logps, torch.ones(1, 3), torch.ones(1), **options)
    ratio = (logps - old_logps_under_trace(logps, old_logps, z)).exp()
    assert ratio[0, 1] == 0 and torch.isfinite(ratio).all()
    # The third token's trace holds the first (0.1, one token back on the clock of three) and itself (0).
    assert ratio[0, 2].log().item() == pytest.approx(0.1 * 0.99**2 / (0.99**2 + 1), abs=1e-5)


def test_a_trace_that_outgrows_float32_stays_finite_for_every_row():
    """40 tokens with a log ratio of 2.5 add up to 100, and exp(100) * 0 in a clipped branch is NaN."""
    logps = torch.full((2, 40), -1.0, requires_grad=True)
    old_logps, advantages = torch.full((2, 40), -3.5), torch.tensor([1.0, -1.0])
    z, _ = traced_log_ratio(logps, old_logps, torch.ones(2, 40), advantages, **(PLAIN | dict(decay=1.0)))
    ratio, advantages = z.exp(), advantages.unsqueeze(1)
    torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum().backward()
    assert torch.isfinite(logps.grad).all()
    assert ratio.max().log().item() == pytest.approx(20, abs=1e-4)
    z, _ = traced_log_ratio(logps, old_logps, torch.ones(2, 40), advantages, **(PLAIN | dict(cap=3.0)))
    assert z.max() == 3


def test_log_probabilities_of_16_bit_are_traced_in_32():
    """40 times 0.1 in bfloat16 would be off by a hundredth, and `logp - z` by the spacing of its numbers."""
    logps = torch.full((1, 40), -1.0, dtype=torch.bfloat16)
    old_logps = logps - torch.tensor(0.125, dtype=torch.bfloat16)
    z, _ = traced_log_ratio(logps, old_logps, torch.ones(1, 40), torch.ones(1), **(PLAIN | dict(decay=0.99)))
    assert z.dtype == torch.float32
    expected = 0.125 * (1 - 0.99**40) / 0.01
    assert z[0, -1].item() == pytest.approx(expected, rel=1e-5)
    assert (logps - old_logps_under_trace(logps, old_logps, z))[0, -1].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kernel", ["identity", "recent", "both", "uniform"])
def test_traced_advantages_are_those_of_a_loop(kernel):
    _, _, advantages, eligible = batch()
    weights = trace_weights(MASK, decay=0.8, kernel=kernel)
    actual = traced_advantages(advantages, weights, eligible=eligible)
    expected = torch.zeros(3, 6)
    for row in range(3):
        tokens = [t for t in range(6) if MASK[row, t]]
        for n_k, k in enumerate(tokens, 1):
            received = sum(weight(kernel, 0.8, n_t, n_k) for n_t in range(1, len(tokens) + 1))
            expected[row, k] = advantages[row] * received * eligible[row, k]
    torch.testing.assert_close(actual, expected)
    # Advantages that differ between tokens are weighed token by token.
    per_token = traced_advantages(advantages.unsqueeze(1).expand(3, 6), weights)
    torch.testing.assert_close(per_token * eligible, expected)


def test_the_floor_raises_negative_advantages_only():
    advantages = torch.tensor([-2.0, -0.05, 0.0, 3.0])
    assert torch.equal(floored_advantages(advantages, -0.1), torch.tensor([-0.1, -0.05, 0.0, 3.0]))
    assert torch.equal(floored_advantages(advantages, None), advantages)
