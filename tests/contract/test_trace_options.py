"""Every field of TRL's `GRPOConfig`: it acts as in TRL or is refused by name, as the options' page says."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from credit_trl import GRPOLambdaConfig, GRPOLambdaTrainer, STraceConfig, TraceConfig
from credit_trl.traces.config import TRACE_FIELDS
from tests.helpers.comparing import largest_difference, same_log, same_weights
from tests.helpers.options import OPTIONS, TRAINER_OPTIONS, experts

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "options.md"
TABLE = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", DOCS.read_text().split("## The fields that")[0], flags=re.M))


REFUSED = {
    "importance_sampling_level": dict(importance_sampling_level="sequence"),
    "loss_type": dict(loss_type="vespo"),
    "loss_type (token)": dict(loss_type="cispo", trust_region="token"),
    "use_bias_correction_kl": dict(beta=0.1),
    "epsilon": dict(trust_region="token", epsilon=1.0),
    "epsilon_high": dict(trust_region="token", epsilon_high=-0.1),
    "trace_normalize": dict(trace_target="advantage", trace_normalize=True),
    "trust_region": dict(trace_target="advantage", trust_region="token"),
    "trust_region (value)": dict(trust_region="sequence"),
    "trace_kernel": dict(trace_kernel="newest"),
    "trace_target": dict(trace_target="loss"),
    "trace_lambda": dict(trace_lambda=1.1),
    "trace_lambda (type)": dict(trace_lambda="0.9"),
    "trace_normalize (type)": dict(trace_normalize="false"),
    "negative_advantage_floor (type)": dict(negative_advantage_floor="none"),
    "trace_gamma": dict(trace_gamma=-0.1),
    "trace_entropy_fraction": dict(trace_entropy_fraction=0.0),
    "negative_advantage_floor": dict(negative_advantage_floor=0.1),
}


def test_the_table_and_this_test_know_every_field_of_trl():
    """A field that TRL adds or drops fails here: read what it does to the loss, then give it its line in both."""
    fields = list(GRPOConfig.__annotations__)
    assert list(TABLE) == fields
    assert list(OPTIONS) == fields


def test_the_table_of_added_fields_holds_the_defaults():
    added = DOCS.read_text().split("## The fields that")[1].split("## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]+)`? \| `?([^|`]+)`? \|", added, flags=re.M)
    assert [row[0] for row in rows] == list(TRACE_FIELDS)
    for name, s_trace, grpo_lambda in rows:
        for config, written in ((STraceConfig, s_trace), (GRPOLambdaConfig, grpo_lambda)):
            default = {field.name: field.default for field in dataclasses.fields(config)}[name]
            assert written.strip('" ') == str(default), (config.__name__, name)


@pytest.mark.parametrize("field", [name for name in OPTIONS if OPTIONS[name] and name != "router_aux_loss_coef"])
def test_a_field_acts_as_in_trl(run, field):
    assert TABLE[field].startswith(("as in TRL", '`"token"` as in TRL'))
    check_acts_as_in_trl(run, OPTIONS[field])


@pytest.mark.parametrize("field", TRAINER_OPTIONS)
def test_a_field_of_the_trainer_acts_as_in_trl(run, field):
    check_acts_as_in_trl(run, TRAINER_OPTIONS[field])


def check_acts_as_in_trl(run, options, *mixins):
    theirs = {name: value for name, value in options.items() if name not in TRACE_FIELDS}
    ours = dict(trace_lambda=0.0, negative_advantage_floor=None) | options

    their_trainer = type("TheirTrainer", (*mixins, GRPOTrainer), {})
    our_trainer = type("OurTrainer", (*mixins, GRPOLambdaTrainer), {})
    _, expected, expected_log = run(their_trainer, GRPOConfig, **theirs)
    _, actual, actual_log = run(our_trainer, GRPOLambdaConfig, **ours)
    same_weights(actual, expected)
    same_log(actual_log, expected_log, but=("vespo/phi_seq_mean",))
    return expected


# Options whose work must show in the weights of the small run above: without this the comparison could be of nothing.
ACTIVE = (
    "beta",
    "delta",
    "entropy_coef",
    "epsilon",
    "epsilon_high",
    "mask_truncated_completions",
    "off_policy_mask_threshold",
    "scale_rewards",
    "top_entropy_quantile",
    "use_adaptive_entropy",
    "use_bias_correction_kl",
)


@pytest.mark.parametrize("field", ACTIVE)
def test_the_comparison_is_of_something(run, field):
    options = {name: value for name, value in OPTIONS[field].items() if name not in TRACE_FIELDS}
    same_length = {name: value for name, value in options.items() if name == "max_completion_length"}
    _, plain, _ = run(GRPOTrainer, **same_length)
    _, changed, _ = run(GRPOTrainer, **options)
    assert largest_difference(changed, plain) > 0


@pytest.mark.parametrize("case", REFUSED)
def test_a_combination_without_meaning_is_refused_by_name(run, tmp_path, case):
    field = case.split(" ")[0]
    with pytest.raises(ValueError, match=rf"^{field}\b"):
        TraceConfig(str(tmp_path), use_cpu=True, bf16=False, **REFUSED[case])
    # A config that was changed after it was made is refused by the trainer.
    with pytest.raises(ValueError, match=rf"^{field}\b"):
        run(ChangedAfterwards.of(REFUSED[case]), TraceConfig)


class ChangedAfterwards(GRPOLambdaTrainer):
    @classmethod
    def of(cls, changes):
        class Changed(cls):
            def __init__(self, model, reward_funcs, args, **kwargs):
                for name, value in changes.items():
                    setattr(args, name, value)
                super().__init__(model, reward_funcs, args, **kwargs)

        return Changed


def test_a_plain_grpo_config_is_checked_too(run):
    with pytest.raises(ValueError, match=r"^importance_sampling_level='sequence'"):
        run(GRPOLambdaTrainer, GRPOConfig, importance_sampling_level="sequence")


def test_vllm_correction_multiplies_the_traced_loss(run):
    """What vLLM leaves behind for the loss, without vLLM: a ratio for every token."""

    class WithCorrection:
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            shape = output["completion_ids"].shape
            output["importance_sampling_ratio"] = torch.rand(shape, generator=torch.Generator().manual_seed(0))
            return output

        def _compute_loss(self, model, inputs):
            self.use_vllm = True
            try:
                return super()._compute_loss(model, inputs)
            finally:
                self.use_vllm = False

    corrected = check_acts_as_in_trl(run, {}, WithCorrection)
    _, plain, _ = run(GRPOTrainer)
    assert largest_difference(corrected, plain) > 1e-4


def test_a_tool_mask_leaves_the_loss_as_in_trl(run):
    class WithToolMask:
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            output["tool_mask"] = torch.ones_like(output["completion_mask"])
            output["tool_mask"][:, 2:4] = 0
            return output

    masked = check_acts_as_in_trl(run, {}, WithToolMask)
    _, plain, _ = run(GRPOTrainer)
    assert largest_difference(masked, plain) > 1e-4


def test_the_auxiliary_loss_of_experts_acts_as_in_trl(run, tiny_model, tmp_path):
    OnExperts = experts(tiny_model, tmp_path)
    with_loss = check_acts_as_in_trl(run, OPTIONS["router_aux_loss_coef"], OnExperts)
    without = check_acts_as_in_trl(run, dict(router_aux_loss_coef=0.0), OnExperts)
    assert largest_difference(with_loss, without) > 1e-6
