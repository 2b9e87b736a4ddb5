"""The credit of a configuration off policy: what is trained, trust region and cap included."""

import math

import pytest
import torch
from trl import GRPOConfig

from credit_trl import GRPOLambdaConfig, STraceConfig, token_credit

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
ADVANTAGES = torch.tensor([1.0, -0.5])
LOG_RATIOS = torch.tensor([[0.05, 0.4, -0.4, 9.0], [-0.05, -0.4, 0.4, 0.1]])


def config(config_class, tmp_path, **options):
    return config_class(str(tmp_path), use_cpu=True, bf16=False, **options)


def test_off_policy_credit_is_the_gradient_of_a_trace_whose_clipped_tokens_get_none(tmp_path):
    args = config(STraceConfig, tmp_path, trace_entropy_fraction=1.0, trace_lambda=0.8, epsilon_high=0.3)
    actual = token_credit(args, ADVANTAGES, MASK, log_ratios=LOG_RATIOS)
    expected = torch.zeros(2, 4)
    for row, (advantage, length) in enumerate(zip(ADVANTAGES.tolist(), (3, 4), strict=True)):
        own = LOG_RATIOS[row, :length].tolist()
        bounded = [min(x, math.log(1.3)) if advantage > 0 else max(x, math.log(0.8)) for x in own]
        for t in range(length):
            weights = [0.8 ** (t - k) for k in range(t + 1)]
            ratio = math.exp(sum(w * x for w, x in zip(weights, bounded, strict=False)) / sum(weights))
            for k in range(t + 1):
                if bounded[k] == own[k]:
                    expected[row, k] += advantage * ratio * weights[k] / sum(weights)
    torch.testing.assert_close(actual, expected)
    # The second token of either row is beyond its bound, and the others of its row are not.
    assert actual[:, 1].tolist() == [0.0, 0.0] and (actual != 0).sum() == 5
    unbounded = config(STraceConfig, tmp_path, trace_entropy_fraction=1.0, trace_lambda=0.8, trust_region="trace")
    assert (token_credit(unbounded, ADVANTAGES, MASK, log_ratios=LOG_RATIOS)[:, 1] != 0).all()


def test_an_own_gradient_credits_a_token_with_its_traced_ratio_alone(tmp_path):
    args = config(STraceConfig, tmp_path, trace_entropy_fraction=1.0, trace_gradient="own", trace_lambda=0.8)
    on_policy = token_credit(args, ADVANTAGES, MASK)
    assert torch.equal(on_policy, ADVANTAGES.unsqueeze(1) * MASK)
    actual = token_credit(args, ADVANTAGES, MASK, log_ratios=LOG_RATIOS)
    first = ADVANTAGES * LOG_RATIOS[:, 0].exp()
    torch.testing.assert_close(actual[:, 0], first)
    # The second token is beyond its own bound, which counts in the trace of the third.
    bounds = torch.tensor([math.log(1.2), math.log(0.8)])
    z = (LOG_RATIOS[:, 2] + 0.8 * bounds + 0.64 * LOG_RATIOS[:, 0]) / (1 + 0.8 + 0.64)
    torch.testing.assert_close(actual[:, 2], ADVANTAGES * z.exp())
    assert actual[:, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("config_class", [GRPOConfig, GRPOLambdaConfig])
def test_a_ratio_that_is_not_traced_multiplies_the_credit(tmp_path, config_class):
    options = {} if config_class is GRPOConfig else dict(trace_target="advantage", negative_advantage_floor=None)
    args = config(config_class, tmp_path, **options)
    on_policy = token_credit(args, ADVANTAGES, MASK)
    assert on_policy.abs().sum() > 0
    actual = token_credit(args, ADVANTAGES, MASK, log_ratios=LOG_RATIOS)
    torch.testing.assert_close(actual, on_policy * LOG_RATIOS.exp())


def test_a_trace_at_its_cap_gives_no_credit(tmp_path):
    args = config(GRPOLambdaConfig, tmp_path, trace_lambda=1.0)
    log_ratios = torch.tensor([[1.0, 1.0, 30.0]])
    actual = token_credit(args, torch.ones(1), torch.ones(1, 3), log_ratios=log_ratios)
    # The third token's own ratio is beyond the cap, and the first two tokens are credited for each other alone.
    torch.testing.assert_close(actual, torch.tensor([[math.exp(1) + math.exp(2), math.exp(2), 0.0]]))


def test_what_is_outside_the_loss_gets_nothing_whatever_its_ratio(tmp_path):
    log_ratios = torch.tensor([[0.0, math.inf]])
    for args in (config(GRPOConfig, tmp_path), config(GRPOLambdaConfig, tmp_path, trace_target="advantage")):
        actual = token_credit(args, torch.ones(1), torch.tensor([[1, 0]]), log_ratios=log_ratios)
        assert actual.tolist() == [[1.0, 0.0]]
