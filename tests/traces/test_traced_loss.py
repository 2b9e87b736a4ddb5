"""With the traces on: TRL's loss and its gradient against a slow loss written from the definitions, token by token."""

import itertools
import math

import pytest
import torch

from credit_trl import GRPOLambdaConfig, GRPOLambdaTrainer, STraceConfig, STraceTrainer
from tests.helpers.slow_traces import weight

MAX_COMPLETION_LENGTH = 12

METHODS = {
    "s_trace": (STraceTrainer, STraceConfig, dict(trace_entropy_fraction=0.5)),
    "p_trace": (STraceTrainer, STraceConfig, dict(trace_entropy_fraction=1.0)),
    "own gradient": (STraceTrainer, STraceConfig, dict(trace_entropy_fraction=0.5, trace_gradient="own")),
    "recent": (GRPOLambdaTrainer, GRPOLambdaConfig, dict()),
    "both": (GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_kernel="both", trace_lambda=0.7)),
    "discounted": (GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_lambda=0.9, trace_gamma=0.6)),
    "advantage": (GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_target="advantage", trace_entropy_fraction=0.5)),
}
OPTIONS = {
    "dapo": dict(),
    "grpo": dict(loss_type="grpo"),
    "bnpo": dict(loss_type="bnpo"),
    "dr_grpo": dict(loss_type="dr_grpo"),
    "kl": dict(beta=0.3),
    "kl without its ratio": dict(beta=0.3, use_bias_correction_kl=False),
    "cispo": dict(loss_type="cispo", epsilon_high=1.02),
    "asymmetric clip": dict(epsilon=0.02, epsilon_high=0.05),
    "delta": dict(delta=1.05),
    "top_entropy_quantile": dict(top_entropy_quantile=0.5),
    "off_policy_mask": dict(off_policy_mask_threshold=1e-3),
}


def slow_loss(logps, entropies, inputs, args):
    """The objective from the definitions: loops, float64, and no code of ours but the weights' definition."""
    B, T = logps.shape
    mask = inputs["completion_mask"].bool()
    old = inputs.get("old_per_token_logps")
    old = logps.detach() if old is None else old.double()
    low, high = args.epsilon, args.epsilon if args.epsilon_high is None else args.epsilon_high
    decay = args.trace_gamma * args.trace_lambda
    eligible_above = torch.quantile(entropies[mask].float(), 1 - args.trace_entropy_fraction)
    kept_above = torch.quantile(entropies[mask].float(), 1 - args.top_entropy_quantile)
    sequences, lengths = [], []
    for b in range(B):
        tokens = [t for t in range(T) if mask[b, t]]
        lengths.append(len(tokens))
        A = inputs["advantages"][b].item()
        if args.negative_advantage_floor is not None:
            A = max(A, args.negative_advantage_floor)
        drift = sum((old[b, t] - logps[b, t]).item() for t in tokens) / len(tokens)
        dropped = args.off_policy_mask_threshold is not None and A < 0 and drift > args.off_policy_mask_threshold

        def factor(k, b=b, A=A):
            log_ratio = logps[b, k] - old[b, k]
            if args.trust_region == "token" and args.loss_type == "cispo":
                return log_ratio.clamp(max=math.log(high))
            if args.trust_region == "token" and A > 0:
                return log_ratio.clamp(max=math.log(1 + high))
            if args.trust_region == "token" and A < 0:
                return log_ratio.clamp(min=math.log(1 - low))
            return log_ratio

        loss = torch.zeros((), dtype=torch.float64)
        for n_t, t in enumerate(tokens, 1):
            eligible = [(n_k, k) for n_k, k in enumerate(tokens, 1) if entropies[b, k] >= eligible_above]
            credit = A
            if args.trace_target == "advantage":
                later = sum(weight(args.trace_kernel, decay, n_s, n_t) for n_s in range(1, len(tokens) + 1))
                credit = A * later * any(k == t for _, k in eligible)
                z = logps[b, t] - old[b, t]
            else:
                weights = [weight(args.trace_kernel, decay, n_t, n_k) for n_k, _ in eligible]
                z = sum((w * factor(k) for w, (_, k) in zip(weights, eligible, strict=True)), torch.zeros(()).double())
                if args.trace_normalize:
                    z = z / sum(weights) if sum(weights) > 0 else z
            if args.trace_gradient == "own":
                own = factor(t) * any(k == t for _, k in eligible)
                z = z.detach() + own - own.detach()
            ratio = z.exp()
            clipped = ratio.clamp(1 - low, 1 + high)
            if args.delta is not None:
                ratio = ratio.clamp(max=args.delta)
            policy = -torch.minimum(ratio * credit, clipped * credit)
            if args.loss_type == "cispo":
                policy = -ratio.clamp(max=high).detach() * credit * logps[b, t]
            if dropped or entropies[b, t] < kept_above:
                policy = policy * 0
            loss = loss + policy
            if args.beta:
                gap = inputs["ref_per_token_logps"][b, t].double() - logps[b, t]
                own_ratio = (logps[b, t] - old[b, t]).exp() if args.use_bias_correction_kl else 1.0
                loss = loss + args.beta * own_ratio * (gap.exp() - gap - 1)
        sequences.append(loss)
    if args.loss_type == "grpo":
        return sum(loss / n for loss, n in zip(sequences, lengths, strict=True)) / B
    if args.loss_type == "dr_grpo":
        return sum(sequences) / (B * MAX_COMPLETION_LENGTH)
    return sum(sequences) / sum(lengths)  # dapo, bnpo, cispo: one process, no accumulation


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "option"),
    [case for case in itertools.product(METHODS, OPTIONS) if case != ("own gradient", "cispo")],  # which is refused
)
def test_loss_and_gradient_are_those_of_the_definition(run, method, option):
    trainer_class, config_class, method_options = METHODS[method]
    steps = []

    class Compared(trainer_class):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            self.policy = logps, entropies
            return logps, entropies, aux_loss

        def _compute_loss(self, model, inputs):
            seen = dict(inputs)
            loss = super()._compute_loss(model, inputs)
            logps, entropies = self.policy
            entropies = entropies.detach()
            (gradient,) = torch.autograd.grad(loss, logps, retain_graph=True)
            slow_logps = logps.detach().double().requires_grad_()
            expected = slow_loss(slow_logps, entropies, seen, self.args)
            (expected_gradient,) = torch.autograd.grad(expected, slow_logps)
            torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-3, atol=1e-6)
            steps.append(expected_gradient.abs().max().item())
            return loss

    run(Compared, config_class, max_completion_length=MAX_COMPLETION_LENGTH, **method_options, **OPTIONS[option])
    assert len(steps) == 6
    assert max(steps) > 1e-3
