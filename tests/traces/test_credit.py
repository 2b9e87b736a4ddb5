"""What a traced loss reads, against loops over tokens written from the definitions, and where numbers run out."""

import math

import pytest
import torch

from credit_trl.traces.credit import (
    floored_advantages,
    old_logps_under_trace,
    traced_advantages,
    traced_log_ratio,
)
from credit_trl.traces.kernels import trace_weights
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


@pytest.mark.parametrize("kernel", ["identity", "recent", "both", "uniform"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_weights_in_the_traces_add_up_to_those_of_the_tokens_that_enter(kernel, normalize):
    logps, old_logps, advantages, eligible = batch()
    old_logps[0, 2], eligible[0, 2] = -math.inf, True
    options = PLAIN | dict(kernel=kernel, normalize=normalize, eligible=eligible)
    _, logged = traced_log_ratio(logps, old_logps, MASK, advantages, **options)
    eligible[0, 2] = False
    expected = (trace_weights(MASK, decay=0.8, kernel=kernel) * eligible).sum(-1)
    torch.testing.assert_close(logged["weights"].sum(-1), expected)
    assert (expected[:2] > 0).all() and not logged["weights"][~MASK.bool()].any()


def test_shapes_that_do_not_match_are_named():
    logps, old_logps, advantages, _ = batch()
    with pytest.raises(ValueError, match=r"eligible has shape \(6,\), but mask has \(3, 6\)"):
        traced_log_ratio(logps, old_logps, MASK, advantages, eligible=torch.ones(6), **PLAIN)
    with pytest.raises(ValueError, match=r"old_logps has shape \(3, 1\), but mask has \(3, 6\)"):
        traced_log_ratio(logps, old_logps[:, :1], MASK, advantages, **PLAIN)


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
    actual = traced_advantages(advantages, weights * eligible)
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
