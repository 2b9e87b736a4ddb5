"""Every field of TRL's `GRPOConfig`: it acts as in TRL or is refused by name, as the options' page says."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer, TrlParser

from credit_trl import (
    GRPOLambdaConfig,
    GRPOLambdaTrainer,
    SRPOTraceConfig,
    SRPOTraceTrainer,
    STraceConfig,
    STraceTrainer,
    TraceConfig,
    TraceTrainer,
)
from credit_trl.traces.config import TRACE_FIELDS, Kernel, TraceGradient, TraceTarget, TrustRegion
from credit_trl.traces.kernels import KERNELS
from tests.helpers.comparing import largest_difference, same_log, same_weights
from tests.helpers.options import OPTIONS, TRAINER_OPTIONS, experts

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "options.md"
TABLE = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", DOCS.read_text().split("## The fields that")[0], flags=re.M))


REFUSED = {
    "importance_sampling_level": dict(importance_sampling_level="sequence"),
    "loss_type": dict(loss_type="vespo"),
    "epsilon": dict(trust_region="token", epsilon=-0.1, epsilon_high=0.2),
    "epsilon_high": dict(trust_region="token", epsilon_high=-0.1),
    "epsilon_high (weight)": dict(trust_region="token", loss_type="cispo", epsilon_high=0.0),
    "trace_normalize": dict(trace_target="advantage", trace_normalize=True),
    "trust_region": dict(trace_target="advantage", trust_region="token"),
    "trace_gradient": dict(trace_target="advantage", trace_gradient="own"),
    "trace_gradient (cispo)": dict(loss_type="cispo", trace_gradient="own"),
    "trust_region (value)": dict(trust_region="sequence"),
    "trace_kernel": dict(trace_kernel="newest"),
    "trace_target": dict(trace_target="loss"),
    "trace_gradient (value)": dict(trace_gradient="none"),
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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
    with pytest.raises(ValueError, match=r"^loss_type='vespo'"):
        run(GRPOLambdaTrainer, GRPOConfig, loss_type="vespo")


@dataclasses.dataclass
class UsersConfig(GRPOConfig):
    folder: str | None = None


@pytest.mark.parametrize("config_class", [GRPOConfig, UsersConfig])
@pytest.mark.parametrize("trainer_class", [STraceTrainer, GRPOLambdaTrainer])
def test_a_trace_takes_the_place_of_gspos_ratio_where_the_config_knows_no_traces(
    run, caplog, config_class, trainer_class
):
    """To the bit the run with "token"; the user's object is left as it is, and makes TRL's trainer afterwards."""
    configs = []

    class Watched(trainer_class):
        def __init__(self, model, reward_funcs, args, **keywords):
            configs.append(args)
            super().__init__(model, reward_funcs, args, **keywords)

    options = dict(beta=0.1, loss_type="grpo", max_steps=4)
    _, expected, expected_log = run(trainer_class, config_class, **options)
    caplog.clear()
    trainer, actual, log = run(Watched, config_class, importance_sampling_level="sequence", **options)
    same_weights(actual, expected)
    same_log(log, expected_log)
    assert caplog.text.count("whose place the trace takes") == 1
    assert type(configs[0]) is config_class and configs[0].importance_sampling_level == "sequence"
    assert trainer.args.importance_sampling_level == "sequence" and trainer.importance_sampling_level == "token"
    # A copy has the fields of traces, with which it contradicts itself.
    with pytest.raises(ValueError, match=r"^importance_sampling_level='sequence'"):
        trainer_class.config_class.from_grpo_config(configs[0]).check_options()
    _, gspo, _ = run(GRPOTrainer, config_class, importance_sampling_level="sequence", **options)
    assert largest_difference(gspo, actual) > 1e-4


@pytest.mark.parametrize("beta", [0.0, 0.001])
def test_an_epsilon_of_ten_leaves_no_lower_bound(run, beta):
    """DeepSeek-R1's, which is no bound of a ratio from below: the log shows what is clipped."""
    _, weights, log = run(STraceTrainer, GRPOConfig, epsilon=10.0, epsilon_high=1e9, beta=beta)
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert all(entry["trace/token_clip_fraction"] == 0 for entry in log[:-1])
    _, bounded, bounded_log = run(STraceTrainer, GRPOConfig, epsilon=0.2, epsilon_high=1e9, beta=beta)
    assert any(entry["trace/token_clip_fraction"] > 0 for entry in bounded_log[:-1])
    assert largest_difference(weights, bounded) > 1e-4


def test_reset_groups_with_traces_take_the_gradient_of_the_own_token_alone(run):
    settings = dict(localizer="random", num_generations=8, epsilon=0.1)
    _, weights, log = run(SRPOTraceTrainer, SRPOTraceConfig, **settings, trace_gradient="own")
    _, plain, _ = run(SRPOTraceTrainer, SRPOTraceConfig, **settings)
    assert all(torch.isfinite(value).all() for value in weights.values()) and "trace/ratio_std" in log[0]
    assert largest_difference(weights, plain) > 1e-4


# Options of scripts for `GRPOTrainer`, and of our own fields, that have no meaning together.
CONFLICTS = {
    "a sequence's ratio": dict(importance_sampling_level="sequence"),
    "vespo": dict(loss_type="vespo"),
    "vespo and a sequence's ratio": dict(loss_type="vespo", importance_sampling_level="sequence", epsilon=2.0),
    "advantage": dict(trace_target="advantage"),
    "advantage, normalized": dict(trace_target="advantage", trace_normalize=True),
    "advantage, token": dict(trace_target="advantage", trust_region="token"),
    "advantage, own gradient": dict(trace_target="advantage", trace_gradient="own"),
    "vespo, own gradient": dict(loss_type="vespo", trace_gradient="own"),
    "cispo, own gradient": dict(loss_type="cispo", trace_gradient="own"),
    "epsilon": dict(epsilon=-0.1, epsilon_high=0.2),
    "epsilon, token": dict(epsilon=-0.1, epsilon_high=0.2, trust_region="token"),
    "epsilon_high": dict(epsilon_high=-0.1),
    "cispo without a bound": dict(loss_type="cispo", epsilon_high=0.0),
    "cispo of no weight": dict(loss_type="cispo", epsilon=0.0, trust_region="token"),
}
METHODS = {
    "family": (TraceTrainer, TraceConfig),
    "s_trace": (STraceTrainer, STraceConfig),
    "grpo_lambda": (GRPOLambdaTrainer, GRPOLambdaConfig),
}


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CONFLICTS)
@pytest.mark.parametrize("plain", [False, True])
def test_the_advice_of_a_refusal_works_when_it_is_followed(run, method, case, plain):
    """Also for a script whose plain `GRPOConfig` lacks the fields to set."""
    trainer_class, config_class = METHODS[method]
    options = CONFLICTS[case]
    if plain and any(name in TRACE_FIELDS for name in options):
        return  # no option of a plain config
    try:
        run(trainer_class, GRPOConfig if plain else config_class, max_steps=1, **options)
    except ValueError as refusal:
        message = str(refusal)
    else:
        assert case.split(",")[0] in ("advantage", "epsilon", "epsilon_high", "cispo without a bound") or (
            case == "a sequence's ratio" and plain  # whose place the trace takes
        )
        assert config_class is not STraceConfig or plain  # whose defaults are the most particular
        return
    found = re.search(r"Use (\w+)\(\.\.\., ([^()]*)\)(, fields that GRPOConfig lacks)?\.$", message)
    assert found and found[1] == config_class.__name__, message
    fields = dict(eval(f"dict({found[2]})"))
    assert bool(found[3]) == any(name in TRACE_FIELDS for name in fields)
    _, weights, log = run(trainer_class, config_class, max_steps=1, **(options | fields))
    assert all(torch.isfinite(value).all() for value in weights.values()) and "loss" in log[0]


def test_a_refusal_names_a_class_that_can_be_imported(tmp_path):
    @dataclasses.dataclass
    class Local(STraceConfig):
        pass

    with pytest.raises(ValueError, match=r"Use STraceConfig\(\.\.\., trace_target='advantage', "):
        Local(str(tmp_path), use_cpu=True, bf16=False, loss_type="vespo")
    with pytest.raises(ValueError, match=r"Use SRPOTraceConfig\("):
        SRPOTraceConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=8, loss_type="vespo")


# What a refusal of a value says that the value has to be, and such a value.
IN_RANGE = {
    r"must be one of (\w+)": lambda found: found[1],
    r"must be in [\[(]0, (\d)\]": lambda found: float(found[1]),
    r"must be at most (\d), or None": lambda found: float(found[1]),
    r"must be a number": lambda found: 0.0,
    r"must be (True) or False": lambda found: found[1] == "True",
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "case", [case for case in REFUSED if set(REFUSED[case]) == {case.split(" ")[0]} & set(TRACE_FIELDS)]
)
def test_a_value_in_the_range_that_a_refusal_names_works(run, tmp_path, case):
    [field] = REFUSED[case]
    with pytest.raises(ValueError, match=field) as refusal:
        TraceConfig(str(tmp_path), use_cpu=True, bf16=False, **REFUSED[case])
    values = [value(found) for pattern, value in IN_RANGE.items() if (found := re.search(pattern, str(refusal.value)))]
    run(TraceTrainer, TraceConfig, max_steps=1, **{field: values[0]})


@pytest.mark.parametrize("config_class", [TraceConfig, STraceConfig, GRPOLambdaConfig])
def test_the_docstring_has_the_fields_their_types_and_defaults(config_class):
    """Editors show it while a config is written."""
    written = re.findall(r"^        (\w+) \(`([^`]+)`, default ([^)]+)\): ", config_class.__doc__, flags=re.M)
    types = config_class.__annotations__
    names = {Kernel: "Kernel", TrustRegion: "TrustRegion", TraceTarget: "TraceTarget", float: "float", bool: "bool"}
    names |= {TraceGradient: "TraceGradient"}
    assert [name for name, _, _ in written] == list(types)
    for name, of_type, default in written:
        assert of_type == names.get(types[name], str(types[name]))
        value = getattr(config_class, name)
        assert default == (f'"{value}"' if isinstance(value, str) else str(value))


@pytest.mark.parametrize("config_class", [STraceConfig, GRPOLambdaConfig])
def test_the_command_line_shows_the_choices_and_refuses_others(config_class, capsys):
    parser = TrlParser((config_class,))
    with pytest.raises(SystemExit):
        parser.parse_args_and_config(["--help"])
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    kinds = dict(
        trace_kernel=Kernel, trust_region=TrustRegion, trace_target=TraceTarget, trace_gradient=TraceGradient
    )  # fmt: skip
    for field, kind in kinds.items():
        choices = ",".join(get_args(kind))
        assert f"--{field.replace('_', '-')} {{{choices}}}" in shown, field
    with pytest.raises(SystemExit):
        parser.parse_args_and_config(["--output_dir", "out", "--trace_kernel", "newest"])
    assert "invalid choice: 'newest'" in capsys.readouterr().err
    options = [
        "--output_dir",
        "out",
        "--use_cpu",
        "--bf16",
        "false",
        "--trace_kernel",
        "both",
        "--trust_region",
        "trace",
    ]
    [config] = parser.parse_args_and_config(options)
    assert (config.trace_kernel, config.trust_region, config.trace_target) == ("both", "trace", "ratio")


def test_the_kernels_of_the_field_are_those_that_there_are():
    assert get_args(Kernel) == KERNELS


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
