"""The KL term under a trace is TRL's: multiplied by each token's own ratio, whatever the trace."""

import functools
import itertools

import pytest
import torch
from trl import GRPOTrainer

from credit_trl import GRPOLambdaConfig, GRPOLambdaTrainer, STraceConfig, STraceTrainer, TraceConfig
from tests.helpers.comparing import largest_difference, same_log, same_weights

EVERYTHING = dict(beta=0.1, entropy_coef=0.01, gradient_accumulation_steps=2, off_policy_mask_threshold=1e-3)
LAMBDA_ZERO = dict(trace_lambda=0.0, negative_advantage_floor=None)
LOSS_TYPES = ["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo"]

METHODS = {
    "s_trace": (STraceTrainer, STraceConfig, dict()),
    "p_trace": (STraceTrainer, STraceConfig, dict(trace_entropy_fraction=1.0)),
    "own gradient": (STraceTrainer, STraceConfig, dict(trace_gradient="own")),
    "recent": (GRPOLambdaTrainer, GRPOLambdaConfig, dict()),
    "both": (GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_kernel="both", trace_lambda=0.7)),
    "advantage": (GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_target="advantage")),
}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_lambda_zero_is_grpo_to_the_bit_with_kl(run, loss_type):
    options = EVERYTHING | dict(loss_type=loss_type, max_steps=4)
    _, expected, expected_log = run(GRPOTrainer, **options)
    _, actual, actual_log = run(GRPOLambdaTrainer, GRPOLambdaConfig, **options, **LAMBDA_ZERO)
    same_weights(actual, expected)
    same_log(actual_log, expected_log)
    assert all(entry["kl"] > 0.01 and "policy_loss" in entry for entry in expected_log[1:-1])


def test_lambda_zero_on_the_advantage_is_grpo_to_the_bit_with_kl(run):
    options = EVERYTHING | dict(loss_type="vespo", max_steps=4)
    _, expected, expected_log = run(GRPOTrainer, **options)
    _, actual, actual_log = run(GRPOLambdaTrainer, GRPOLambdaConfig, trace_target="advantage", **options, **LAMBDA_ZERO)
    same_weights(actual, expected)
    same_log(actual_log, expected_log, but=("vespo/phi_seq_mean",))


def test_at_lambda_zero_the_own_ratio_changes_nothing_but_rounding(run, monkeypatch):
    """TRL's ratio is the token's own there, so that the trainer leaves the KL term alone."""
    _, expected, log = run(GRPOTrainer, beta=0.1)
    monkeypatch.setattr(TraceConfig, "keeps_own_ratio", False)
    _, actual, actual_log = run(GRPOLambdaTrainer, GRPOLambdaConfig, beta=0.1, **LAMBDA_ZERO)
    assert largest_difference(actual, expected) < 1e-4
    assert actual_log[2]["kl"] == pytest.approx(log[2]["kl"], rel=1e-4)


def gradient(loss, model):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([part.flatten().double() for part in torch.autograd.grad(loss, parameters)])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "loss_type"),
    [case for case in itertools.product(METHODS, LOSS_TYPES) if case != ("own gradient", "cispo")],  # which is refused
)
@pytest.mark.parametrize("bias_correction", [True, False])
def test_what_beta_adds_to_the_gradient_is_what_it_adds_in_trl(run, method, loss_type, bias_correction):
    trainer_class, config_class, options = METHODS[method]
    options = options | dict(loss_type=loss_type, beta=1.0, use_bias_correction_kl=bias_correction)
    differences, effects = [], []

    class Compared(trainer_class):
        def _compute_loss(self, model, inputs):
            ours, theirs = super()._compute_loss, functools.partial(GRPOTrainer._compute_loss, self)
            added = []
            for loss in (ours, theirs):
                self.beta = 0.0
                without = gradient(loss(model, inputs), model)
                self.beta = 1.0
                added.append(gradient(loss(model, inputs), model) - without)
            effects.append((gradient(ours(model, inputs), model) - gradient(theirs(model, inputs), model)).norm())
            differences.append(((added[0] - added[1]).norm() / added[1].norm()).item())
            assert self._metrics["train"]["kl"][0] == self._metrics["train"]["kl"][1]
            assert type(self.beta) is float and self.args.use_bias_correction_kl is bias_correction
            return ours(model, inputs)

    run(Compared, config_class, max_steps=3, **options)
    # The first step's policy is its own reference, and what is added there is nothing.
    assert len(differences) == 3
    assert max(differences[1:]) < 1e-5
    assert max(effects) > 1e-4 or loss_type == "cispo"  # the traces themselves were on


def test_the_trace_would_have_changed_the_kl_term(run, monkeypatch):
    """With the traced ratio in its place, which TRL's own multiplication would be."""
    _, expected, _ = run(GRPOLambdaTrainer, GRPOLambdaConfig, beta=0.1)
    monkeypatch.setattr(TraceConfig, "keeps_own_ratio", True)
    _, traced, _ = run(GRPOLambdaTrainer, GRPOLambdaConfig, beta=0.1)
    assert largest_difference(traced, expected) > 1e-4


def test_beta_is_trls_again_after_a_loss_that_fails(run):
    class Failing(STraceTrainer):
        def get_off_policy_mask(self, **kwargs):
            assert type(self.beta) is not float and not self.args.use_bias_correction_kl
            raise ArithmeticError

        def _compute_loss(self, model, inputs):
            try:
                return super()._compute_loss(model, inputs)
            finally:
                assert type(self.beta) is float and self.args.use_bias_correction_kl

    with pytest.raises(ArithmeticError):
        run(Failing, STraceConfig, beta=0.1, off_policy_mask_threshold=0.1)


def test_evaluation_has_the_kl_term(run, prompts):
    _, _, log = run(
        STraceTrainer,
        STraceConfig,
        beta=0.1,
        trainer_options=dict(eval_dataset=prompts),
        max_steps=2,
        num_iterations=1,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=4,
    )
    assert [entry["eval_kl"] > 0.01 for entry in log if "eval_kl" in entry] == [True]
