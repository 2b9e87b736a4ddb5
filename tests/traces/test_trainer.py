"""The trace trainers against TRL's own trainers in the limits where they must agree, and beyond them."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from credit_trl import GRPOLambdaConfig, GRPOLambdaTrainer, STraceConfig, STraceTrainer, TraceConfig, TraceTrainer
from credit_trl.traces import credit as credit_module
from credit_trl.traces.kernels import trace_weights
from tests.helpers.comparing import largest_difference, same_log, same_weights
from tests.helpers.training import digit_reward


@pytest.fixture
def traced(monkeypatch) -> list[SimpleNamespace]:
    """What every loss of a run gave to `traced_log_ratio` and got from it, without gradients."""
    steps = []
    original = credit_module.traced_log_ratio

    def spy(logps, old_logps, mask, advantages, **options):
        z, counted = original(logps, old_logps, mask, advantages, **options)
        step = dict(logps=logps.detach(), old_logps=old_logps, mask=mask, advantages=advantages, z=z.detach())
        steps.append(SimpleNamespace(**step))
        return z, counted

    monkeypatch.setattr(credit_module, "traced_log_ratio", spy)
    return steps


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo"])
def test_lambda_zero_is_grpo_to_the_bit(run, loss_type):
    _, expected, expected_log = run(GRPOTrainer, loss_type=loss_type)
    _, actual, actual_log = run(
        GRPOLambdaTrainer, GRPOLambdaConfig, loss_type=loss_type, trace_lambda=0.0, negative_advantage_floor=None
    )
    same_weights(actual, expected)
    same_log(actual_log, expected_log)
    # The comparison is worth something only if the ratios left 1 and training moved.
    assert max(entry.get("trace/ratio_std", 0.0) for entry in actual_log) > 1e-3
    # With the traces on, the same run goes elsewhere.
    _, traced, _ = run(
        GRPOLambdaTrainer, GRPOLambdaConfig, loss_type=loss_type, trace_lambda=0.9, negative_advantage_floor=None
    )
    assert largest_difference(traced, expected) > 1e-4


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "vespo"])
def test_lambda_zero_on_the_advantage_is_grpo_to_the_bit(run, loss_type):
    _, expected, expected_log = run(GRPOTrainer, loss_type=loss_type)
    _, actual, actual_log = run(
        GRPOLambdaTrainer,
        GRPOLambdaConfig,
        loss_type=loss_type,
        trace_target="advantage",
        trace_lambda=0.0,
        negative_advantage_floor=None,
    )
    same_weights(actual, expected)
    # With advantages per token TRL averages VESPO's weight over tokens rather than over sequences.
    same_log(actual_log, expected_log, but=("vespo/phi_seq_mean",))


def test_peft_acts_as_in_trl(run):
    from peft import LoraConfig

    def lora():
        return dict(trainer_options=dict(peft_config=LoraConfig(r=4, target_modules="all-linear")))

    _, expected, expected_log = run(GRPOTrainer, beta=0.1, **lora())
    _, actual, actual_log = run(
        GRPOLambdaTrainer,
        GRPOLambdaConfig,
        beta=0.1,
        trace_lambda=0.0,
        negative_advantage_floor=None,
        **lora(),
    )
    assert any("lora_B" in name and value.abs().sum() > 0 for name, value in actual.items())
    same_weights(actual, expected)
    same_log(actual_log, expected_log)


def test_the_off_policy_mask_sees_the_policys_drift_and_not_the_trace(run, traced, monkeypatch):
    """With an old log-probability of `logp - z`, TRL would take the trace for the distance from the old policy."""
    seen = []
    original = GRPOTrainer.get_off_policy_mask

    def spy(**kwargs):
        seen.append(kwargs["sampling_per_token_logps"])
        return original(**kwargs)

    monkeypatch.setattr(GRPOTrainer, "get_off_policy_mask", staticmethod(spy))
    run(GRPOLambdaTrainer, GRPOLambdaConfig, off_policy_mask_threshold=0.1)
    assert len(traced) == len(seen) == 6
    assert all(torch.equal(step.old_logps, drift) for step, drift in zip(traced, seen, strict=True))


def test_uniform_normalized_is_gspo(run):
    _, expected, expected_log = run(GRPOTrainer, importance_sampling_level="sequence", loss_type="grpo")
    _, actual, actual_log = run(
        GRPOLambdaTrainer,
        GRPOLambdaConfig,
        loss_type="grpo",
        trace_kernel="uniform",
        trace_normalize=True,
        negative_advantage_floor=None,
    )
    _, grpo, _ = run(GRPOTrainer, loss_type="grpo")
    assert largest_difference(actual, expected) < 1e-4 < largest_difference(grpo, expected)
    for ours, theirs in zip(actual_log, expected_log, strict=True):
        if "loss" in theirs:
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_an_own_gradient_of_a_uniform_normalized_trace_is_gspos(run):
    """GSPO-token: the gradients of a completion's tokens add up to that of its one ratio."""
    options = dict(loss_type="grpo", max_steps=4)
    _, expected, _ = run(GRPOTrainer, importance_sampling_level="sequence", **options)
    traced = dict(trace_kernel="uniform", trace_normalize=True, negative_advantage_floor=None, trace_gradient="own")
    _, actual, _ = run(GRPOLambdaTrainer, GRPOLambdaConfig, **traced, **options)
    _, grpo, _ = run(GRPOTrainer, **options)
    assert largest_difference(actual, expected) < 1e-4 < largest_difference(grpo, expected)


@pytest.mark.parametrize(
    "options", [dict(trace_lambda=0.0), dict(trace_lambda=0.0, beta=0.1), dict(num_iterations=1)]
)  # fmt: skip
def test_an_own_gradient_at_lambda_zero_or_on_policy_is_grpo_to_the_bit(run, options):
    trls = {name: value for name, value in options.items() if not name.startswith("trace_")}
    _, expected, expected_log = run(GRPOTrainer, **trls)
    own = dict(trace_gradient="own", negative_advantage_floor=None)
    _, actual, actual_log = run(GRPOLambdaTrainer, GRPOLambdaConfig, **options, **own)
    same_weights(actual, expected)
    same_log(actual_log, expected_log)


def test_off_policy_an_own_gradient_is_neither_grpo_nor_the_traces(run):
    unfloored = dict(negative_advantage_floor=None)
    _, actual, _ = run(GRPOLambdaTrainer, GRPOLambdaConfig, trace_gradient="own", **unfloored)
    _, traced, _ = run(GRPOLambdaTrainer, GRPOLambdaConfig, **unfloored)
    _, grpo, _ = run(GRPOTrainer)
    assert min(largest_difference(actual, grpo), largest_difference(actual, traced)) > 1e-4


def test_uniform_with_the_token_trust_region_is_gmpo(run):
    """TRL's GMPO clips log ratios to [-epsilon, epsilon_high]; ours clips ratios to [1 - epsilon, 1 + epsilon_high]."""
    bound = 0.1
    _, expected, _ = run(GMPOTrainer, GMPOConfig, epsilon=bound, epsilon_high=bound)
    options = dict(loss_type="grpo", epsilon=1 - math.exp(-bound), epsilon_high=math.exp(bound) - 1)
    _, actual, log = run(
        STraceTrainer, STraceConfig, trace_kernel="uniform", trace_entropy_fraction=1.0, beta=0.0, **options
    )
    assert max(entry.get("trace/token_clip_fraction", 0.0) for entry in log) > 0.01
    assert largest_difference(actual, expected) < 1e-4
    _, gspo, _ = run(GRPOTrainer, importance_sampling_level="sequence", **options)
    assert largest_difference(gspo, expected) > 1e-4


def test_normalized_and_token_keep_the_ratio_inside_so_that_the_outer_clip_is_inert(run, traced):
    """Up to rounding: a trace of clipped factors alone sits on the bound itself, and its gradient is zero already."""
    run(STraceTrainer, STraceConfig, epsilon=0.05, learning_rate=2e-2)
    excess, own_excess = [], []
    for step in traced:
        up = (step.advantages.unsqueeze(1) > 0) & step.mask.bool()
        excess.append(step.z.exp()[up].max().item() - 1.05)
        own_excess.append((step.logps - step.old_logps).exp()[up].max().item() - 1.05)
    assert max(own_excess) > 0.5  # without the trust region of the tokens the bound is left by far
    assert max(excess) < 1e-5


@pytest.mark.thorough
@pytest.mark.parametrize("kernel", ["recent", "both", "uniform"])
@pytest.mark.parametrize(("loss_type", "fraction"), [("dapo", 1.0), ("grpo", 1.0), ("dr_grpo", 1.0), ("dapo", 0.4)])
def test_on_policy_eps_trace_and_eps_weight_make_the_same_update(run, kernel, loss_type, fraction):
    options = dict(num_iterations=1, max_steps=1, optim="sgd", learning_rate=0.5, trace_kernel=kernel)
    options |= dict(loss_type=loss_type, trace_lambda=0.9, trace_entropy_fraction=fraction)
    _, ratio, _ = run(GRPOLambdaTrainer, GRPOLambdaConfig, trace_target="ratio", **options)
    _, advantage, _ = run(GRPOLambdaTrainer, GRPOLambdaConfig, trace_target="advantage", **options)
    _, grpo, _ = run(GRPOTrainer, **{name: options[name] for name in options if not name.startswith("trace_")})
    assert largest_difference(ratio, advantage) < 1e-5 < largest_difference(ratio, grpo)


def test_s_trace_of_all_tokens_is_p_trace_and_of_a_fifth_is_not(run):
    _, all_tokens, log = run(STraceTrainer, STraceConfig, trace_entropy_fraction=1.0)
    _, p_trace, _ = run(
        GRPOLambdaTrainer,
        TraceConfig,
        trace_normalize=True,
        trust_region="token",
        trace_kernel="recent",
        trace_lambda=0.99,
    )
    same_weights(all_tokens, p_trace)
    assert all(entry["trace/eligible_fraction"] == 1.0 for entry in log if "trace/eligible_fraction" in entry)
    _, fifth, log = run(STraceTrainer, STraceConfig)
    assert largest_difference(fifth, p_trace) > 1e-4
    fractions = [entry["trace/eligible_fraction"] for entry in log if "trace/eligible_fraction" in entry]
    assert all(0.15 < fraction < 0.3 for fraction in fractions)


def test_the_loss_reads_floored_advantages_and_the_buffer_keeps_trls(run, monkeypatch):
    """The second iteration starts from the same advantages as the first."""
    buffered, read = [], []
    original = GRPOTrainer.get_off_policy_mask

    def spy(**kwargs):
        read.append(kwargs["advantages"].squeeze(1))
        return original(**kwargs)

    class Spy(GRPOLambdaTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            buffered.append(inputs["advantages"])
            return loss

    monkeypatch.setattr(GRPOTrainer, "get_off_policy_mask", staticmethod(spy))
    run(Spy, GRPOLambdaConfig, num_iterations=2, max_steps=2, off_policy_mask_threshold=0.1)
    assert buffered[0].min() < -0.1 and torch.equal(buffered[0], buffered[1])
    for advantages, floored in zip(buffered, read, strict=True):
        assert torch.equal(floored, torch.where(advantages < -0.1, torch.tensor(-0.1), advantages))


def test_metrics_are_what_they_say(run, traced):
    """Recomputed by hand from the tensors that one loss saw."""
    _, _, log = run(STraceTrainer, STraceConfig, epsilon=0.05, trace_entropy_fraction=1.0, trace_lambda=0.8)
    log_ratio, z, mask = traced[-1].logps - traced[-1].old_logps, traced[-1].z, traced[-1].mask.bool()
    advantages = traced[-1].advantages
    last = [entry for entry in log if "trace/ratio_mean" in entry][-1]
    ratios = z.exp()[mask]
    assert last["trace/ratio_mean"] == pytest.approx(ratios.mean().item(), abs=1e-5)
    assert last["trace/ratio_std"] == pytest.approx(ratios.std(correction=0).item(), abs=1e-5)
    up, down = advantages.unsqueeze(1) > 0, advantages.unsqueeze(1) < 0
    clipped = (up & (log_ratio > math.log(1.05))) | (down & (log_ratio < math.log(0.95)))
    assert last["trace/token_clip_fraction"] == pytest.approx(clipped[mask].float().mean().item(), abs=1e-6)
    assert last["trace/effective_length"] == pytest.approx(
        trace_weights(mask, decay=0.8, kernel="recent")[mask].mean().item(), abs=1e-4
    )
    assert last["trace/non_finite_count"] == 0


def test_tool_results_are_outside_the_trace(run):
    """Tokens under `tool_mask` 0 neither carry nor decay a trace, whatever their log-probabilities are."""

    class WithTools(GRPOLambdaTrainer):
        shift = 0.0

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            output["tool_mask"] = torch.ones_like(output["completion_mask"])
            output["tool_mask"][:, 3:6] = 0
            output["old_per_token_logps"][:, 3:6] -= self.shift
            return output

    class Shifted(WithTools):
        shift = 3.0

    _, plain, _ = run(WithTools, GRPOLambdaConfig)
    _, shifted, _ = run(Shifted, GRPOLambdaConfig)
    assert largest_difference(shifted, plain) < 1e-6
    _, without_mask, _ = run(GRPOLambdaTrainer, GRPOLambdaConfig)
    assert largest_difference(without_mask, plain) > 1e-4


def test_a_non_finite_old_log_probability_touches_only_its_own_token(run):
    class Broken(STraceTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            output["old_per_token_logps"][0, 0] = float("nan")
            output["old_per_token_logps"][1, 0] = -float("inf")
            return output

    _, weights, log = run(Broken, STraceConfig, trace_entropy_fraction=1.0)
    assert all(torch.isfinite(value).all() for value in weights.values())
    counts = [entry["trace/non_finite_count"] for entry in log if "trace/non_finite_count" in entry]
    assert counts == [2.0] * 6


def test_a_non_finite_entropy_leaves_the_other_tokens_eligible(run, monkeypatch):
    original = GRPOTrainer._get_per_token_logps_and_entropies

    def broken(self, *args, **kwargs):
        logps, entropies, aux_loss = original(self, *args, **kwargs)
        if entropies is not None:
            entropies = entropies.clone()
            entropies[0] = float("nan")
        return logps, entropies, aux_loss

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", broken)
    _, _, log = run(STraceTrainer, STraceConfig, trace_entropy_fraction=0.5)
    fractions = [entry["trace/eligible_fraction"] for entry in log if "trace/eligible_fraction" in entry]
    assert all(0.35 < fraction < 0.5 for fraction in fractions)  # half of the tokens of 7 of the 8 rows


def test_a_plain_grpo_config_gets_the_papers_defaults(run):
    trainer, plain, _ = run(STraceTrainer, GRPOConfig)
    assert isinstance(trainer.args, STraceConfig)
    assert (trainer.args.trust_region, trainer.args.trace_normalize) == ("token", True)
    assert trainer.args.__getstate__()["trace_entropy_fraction"] == 0.2  # saved with the training arguments
    _, explicit, _ = run(STraceTrainer, STraceConfig)
    same_weights(plain, explicit)
    trainer, _, _ = run(GRPOLambdaTrainer, GRPOConfig, max_steps=1)
    assert (trainer.args.negative_advantage_floor, trainer.args.trust_region) == (-0.1, "trace")


def test_without_args_the_defaults_are_the_methods_and_the_folder_is_named_after_it(tiny_model, prompts):
    @dataclass
    class CpuConfig(STraceConfig):  # TRL's defaults want a GPU
        use_cpu: bool = True
        bf16: bool = False

    class OnCpu(STraceTrainer):
        config_class = CpuConfig

    trainer = OnCpu(tiny_model, digit_reward, train_dataset=prompts)
    assert trainer.args.output_dir == "tiny-S-trace"
    assert trainer.args.trace_entropy_fraction == 0.2


def test_args_of_another_kind_are_refused(tiny_model, prompts, tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(TypeError, match="args must be a GRPOConfig or a STraceConfig, got TrainingArguments"):
        STraceTrainer(tiny_model, [], args=TrainingArguments(str(tmp_path)), train_dataset=prompts)


@pytest.mark.parametrize(("num_iterations", "said"), [(1, 1), (2, 0)])
def test_ratios_of_one_are_announced_once(run, caplog, num_iterations, said):
    run(STraceTrainer, STraceConfig, num_iterations=num_iterations, max_steps=2)
    assert caplog.text.count("Every importance ratio will be 1") == said


def test_on_policy_every_ratio_is_one_and_the_traces_still_train(run):
    _, traced, log = run(GRPOLambdaTrainer, GRPOLambdaConfig, num_iterations=1)
    steps = [entry for entry in log if "trace/ratio_mean" in entry]
    assert all(entry["trace/ratio_mean"] == 1.0 and entry["trace/ratio_std"] == 0.0 for entry in steps)
    _, grpo, _ = run(GRPOTrainer, num_iterations=1)
    assert largest_difference(traced, grpo) > 1e-4


def test_evaluation_logs_its_own_traces(run, prompts):
    trainer, _, log = run(
        STraceTrainer,
        STraceConfig,
        trainer_options=dict(eval_dataset=prompts),
        max_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
    )
    evaluations = [entry for entry in log if "eval_loss" in entry]
    assert evaluations[0]["eval_trace/ratio_mean"] == pytest.approx(1.0)
    assert trainer._pending_totals == {"train": [], "eval": []}


def test_gamma_times_lambda_is_the_decay(run):
    _, discounted, _ = run(GRPOLambdaTrainer, GRPOLambdaConfig, trace_lambda=1.0, trace_gamma=0.5)
    _, decayed, _ = run(GRPOLambdaTrainer, GRPOLambdaConfig, trace_lambda=0.5, trace_gamma=1.0)
    same_weights(discounted, decayed)


def test_the_samplers_log_probabilities_stay_the_samplers(run, monkeypatch):
    """With vLLM the off-policy mask measures from what vLLM reported."""
    seen = []
    original = GRPOTrainer.get_off_policy_mask

    def spy(**kwargs):
        seen.append(kwargs["sampling_per_token_logps"])
        return original(**kwargs)

    class WithSampler(GRPOLambdaTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            output["sampling_per_token_logps"] = torch.full(output["completion_ids"].shape, -1.25)
            return output

    monkeypatch.setattr(GRPOTrainer, "get_off_policy_mask", staticmethod(spy))
    run(WithSampler, GRPOLambdaConfig, off_policy_mask_threshold=0.1, max_steps=2)
    assert len(seen) == 2
    assert all((logps == -1.25).all() for logps in seen)


def test_a_count_of_non_finite_ratios_adds_up_over_the_logging_window(run):
    class Broken(GRPOLambdaTrainer):
        def _compute_loss(self, model, inputs):
            inputs["old_per_token_logps"][0, 0] = float("nan")
            return super()._compute_loss(model, inputs)

    _, _, log = run(Broken, GRPOLambdaConfig, logging_steps=3)
    logged = [entry for entry in log if "trace/non_finite_count" in entry]
    assert [entry["trace/non_finite_count"] for entry in logged] == [3.0, 3.0]
    assert all(entry["trace/eligible_fraction"] < 1 for entry in logged)


def test_the_family_itself_is_a_trainer(run):
    trainer, weights, _ = run(TraceTrainer, GRPOConfig)
    assert type(trainer.args) is TraceConfig
    _, explicit, _ = run(GRPOLambdaTrainer, GRPOLambdaConfig, negative_advantage_floor=None)
    same_weights(weights, explicit)


def test_another_methods_config_is_refused(run):
    with pytest.raises(ValueError, match=r"args is a GRPOLambdaConfig, .* STraceTrainer takes a STraceConfig"):
        run(STraceTrainer, GRPOLambdaConfig)
    with pytest.raises(ValueError, match=r"args is a STraceConfig, .* GRPOLambdaTrainer takes a GRPOLambdaConfig"):
        run(GRPOLambdaTrainer, STraceConfig)


@pytest.mark.parametrize("steps_per_generation", [1, 2])
def test_generation_that_is_not_aligned_is_not_announced(run, caplog, steps_per_generation):
    run(STraceTrainer, STraceConfig, num_iterations=1, max_steps=1, steps_per_generation=steps_per_generation)
    assert ("Every importance ratio will be 1" in caplog.text) == (steps_per_generation == 1)


def test_cispo_says_what_a_traced_ratio_does_there(run, caplog):
    run(GRPOLambdaTrainer, GRPOLambdaConfig, loss_type="cispo", num_iterations=1, max_steps=1)
    assert "stops the gradient through the ratio" in caplog.text
    assert "Every importance ratio" not in caplog.text


def test_a_resumed_run_equals_the_uninterrupted_one(run, tmp_path):
    options = dict(save_strategy="steps", save_steps=3, output_dir=str(tmp_path / "whole"))
    _, expected, expected_log = run(STraceTrainer, STraceConfig, **options)
    _, resumed, log = run(
        STraceTrainer, STraceConfig, resume=str(tmp_path / "whole" / "checkpoint-3"), output_dir=str(tmp_path / "again")
    )
    same_weights(resumed, expected)
    assert log[-2]["trace/ratio_std"] == expected_log[-2]["trace/ratio_std"]
