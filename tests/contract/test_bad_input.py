"""Values that a field of ours cannot take are refused by its name; whatever is not refused trains."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from credit_trl import (
    GRPOLambdaConfig,
    GRPOLambdaTrainer,
    SRPOConfig,
    SRPOTrainer,
    STraceConfig,
    STraceTrainer,
)
from credit_trl.resets.config import RESET_FIELDS
from credit_trl.testbed import BASE_MODEL, LOCALIZATION_TEMPLATE, answer_reward, make_dataset
from credit_trl.traces.config import TRACE_FIELDS
from credit_trl.traces.kernels import KERNELS
from tests.helpers.training import QUIET_ON_CPU

NO_NUMBER: list[Any] = ["0.5", True, math.nan, [0.5], 0.5j, np.array([0.5, 0.5])]
NO_INTEGER_OR_NONE: list[Any] = [*NO_NUMBER, 1.0, math.inf, np.int64(1)]
NO_INTEGER: list[Any] = [*NO_INTEGER_OR_NONE, None]
NO_CHOICE: list[Any] = ["", "other", None, 1, True, ["self"], np.array(["random", "self"]), b"random"]
BAD: dict[str, list[Any]] = {
    "trace_kernel": NO_CHOICE,
    "trace_lambda": [*NO_NUMBER, None, -0.1, 1.1, math.inf],
    "trace_gamma": [*NO_NUMBER, None, -0.1, 1.1, math.inf],
    "trace_normalize": ["false", None, 0, 1.0, np.True_, [True]],
    "trust_region": NO_CHOICE,
    "trace_entropy_fraction": [*NO_NUMBER, None, 0.0, -0.1, 1.1, math.inf],
    "trace_target": NO_CHOICE,
    "trace_gradient": NO_CHOICE,
    "negative_advantage_floor": [*NO_NUMBER, 0.1, math.inf],
    "num_reset_prefixes": [*NO_INTEGER, 0, -1, 9],
    "suffixes_per_prefix": [*NO_INTEGER_OR_NONE, 1, 0, -4],
    "step_delimiter": [None, "", 5, b"x", [], [""], ["a", 1], {"a"}, np.array(["a", "b"]), len],
    "localizer": [*NO_CHOICE, len],
    "localization_template": ["", "{problem}", "{steps}", 5, b"{problem}{steps}", ["{problem}{steps}"], True],
    "localization_temperature": [*NO_NUMBER, None, -1.0, math.inf],
    "localization_votes": [*NO_INTEGER, 0, -1],
    "localization_fallback": NO_CHOICE,
    "localizer_model": ["", 5, b"prm", ["prm"], "a model that localizer='self' does not read"],
    "localizer_kwargs": [5, "base_url", ["a"], {"threshold": 0.5}],
    "train_prefix": ["false", None, 0, 1.0, np.True_, [True]],
    "localization_max_tokens": [*NO_INTEGER_OR_NONE, 0, -1],
    "reset_offset": [*NO_INTEGER, -1],
    "seed_source": NO_CHOICE,
    "seed_selection": NO_CHOICE,
    "max_seed_attempts": [*NO_INTEGER, 0, -1],
    "correctness_reward": [1.5, True, math.nan, ["answer_reward"], b"answer_reward", np.array([0, 1])],
    "failure_threshold": [*NO_NUMBER, None],
}


def test_the_bad_values_are_those_of_every_field():
    assert set(BAD) == {*TRACE_FIELDS, *RESET_FIELDS}


@pytest.mark.parametrize("field", BAD)
def test_a_bad_value_is_refused_by_name(tmp_path, field):
    configs = [SRPOConfig] if field in RESET_FIELDS else [STraceConfig, GRPOLambdaConfig]
    for config in configs:
        sound = config(str(tmp_path), use_cpu=True, bf16=False)
        before = getattr(sound, field)
        with pytest.raises(ValueError, match=rf"^{field}\b"):
            config(str(tmp_path), use_cpu=True, bf16=False, **{field: BAD[field][0]})
        for value in BAD[field]:
            setattr(sound, field, value)
            with pytest.raises(ValueError, match=rf"^{field}\b"):
                sound.check_options()
        setattr(sound, field, before)
        sound.check_options()


UNIT = st.floats(0, 1)
TRL_FIELDS = {
    "loss_type": st.sampled_from(["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "vespo", "luspo"]),
    "scale_rewards": st.sampled_from(["group", "batch", "none"]),
    "multi_objective_aggregation": st.sampled_from(["sum_then_normalize", "normalize_then_sum"]),
    "importance_sampling_level": st.sampled_from(["token", "sequence"]),
    "num_iterations": st.sampled_from([1, 2]),
    "top_entropy_quantile": st.sampled_from([1.0, 0.4]),
    "mask_truncated_completions": st.booleans(),
    "max_completion_length": st.sampled_from([1, 2, 12]),
    "num_generations": st.sampled_from([2, 4, 8]),
    "epsilon": st.sampled_from([0.0, 0.2, 1.0]),
    "off_policy_mask_threshold": st.sampled_from([None, 0.1]),
}
TRACE: dict[str, st.SearchStrategy] = {
    "trace_kernel": st.sampled_from(KERNELS),
    "trace_lambda": UNIT,
    "trace_gamma": UNIT,
    "trace_normalize": st.booleans(),
    "trust_region": st.sampled_from(["trace", "token"]),
    "trace_entropy_fraction": st.floats(1e-6, 1),
    "trace_target": st.sampled_from(["ratio", "advantage"]),
    "trace_gradient": st.sampled_from(["all", "own"]),
    "negative_advantage_floor": st.none() | st.floats(-2, 0) | st.just(-math.inf),
}
RESET: dict[str, st.SearchStrategy] = {
    "num_reset_prefixes": st.sampled_from([1, 2, 3]),
    "suffixes_per_prefix": st.sampled_from([2, 3, 4]),
    "step_delimiter": st.sampled_from(["\n\n", "=", ["=", "\n\n"], "never"]),
    "localizer": st.sampled_from(["self", "random"]),
    "localization_template": st.none() | st.just(LOCALIZATION_TEMPLATE),
    "localization_temperature": st.just(0.0) | st.floats(1e-3, 1e3),
    "localization_votes": st.sampled_from([1, 2]),
    "localization_fallback": st.sampled_from(["random", "first"]),
    "train_prefix": st.booleans(),
    "localization_max_tokens": st.integers(1, 5),
    "reset_offset": st.integers(0, 3),
    "seed_source": st.sampled_from(["base", "fresh"]),
    "seed_selection": st.sampled_from(["random", "furthest"]),
    "max_seed_attempts": st.integers(1, 3),
    "correctness_reward": st.sampled_from([None, "answer_reward", 0, -1, 1, "other"]),
    "failure_threshold": st.sampled_from([1.0, 0.5, -math.inf, math.inf]),
}
METHODS = {
    "S-trace": (STraceTrainer, STraceConfig, TRACE),
    "GRPO-lambda": (GRPOLambdaTrainer, GRPOLambdaConfig, TRACE),
    "SRPO": (SRPOTrainer, SRPOConfig, RESET),
}


def options_of(name: str) -> st.SearchStrategy[tuple[dict, dict]]:
    """Values in range, which may have no meaning together, and in one draw of four a bad one."""
    fields = METHODS[name][2]
    bad = st.sampled_from([{field: value} for field in fields for value in BAD[field]])
    in_range = st.fixed_dictionaries({}, optional=fields | TRL_FIELDS)
    return st.tuples(
        in_range, st.sampled_from([True, False, False, False]).flatmap(lambda b: bad if b else st.just({}))
    )


TRLS_EXTREMES = ("clip_ratio/low_min", "clip_ratio/high_max")


def refused_or_trained(name: str, options: dict, bad: dict, folder: str) -> bool:
    """Whether a step was trained; then all that came of it is finite."""
    trainer_class, config_class, _ = METHODS[name]
    sizes = dict(output_dir=folder, per_device_train_batch_size=8, max_completion_length=12, max_steps=1)
    sizes |= dict(num_generations=4, suffixes_per_prefix=2) if name == "SRPO" else dict(num_generations=4)
    ours = METHODS[name][2] | TRL_FIELDS
    try:
        args = config_class(**(QUIET_ON_CPU | sizes | options | bad))
        trainer = trainer_class(str(BASE_MODEL), answer_reward, args=args, train_dataset=make_dataset(8))
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal or bad:
        # The others may have no meaning together and be named first.
        assert refusal.startswith((*bad, *ours, "use_bias_correction_kl")), (options, bad, refusal)
        return False
    trainer.train()
    for weight in trainer.model.state_dict().values():
        assert torch.isfinite(weight).all(), options
    logged = trainer.state.log_history[0]
    if options.get("mask_truncated_completions"):  # a completion without a token in the loss: TRL logs these as None
        logged = {key: value for key, value in logged.items() if key not in TRLS_EXTREMES or value is not None}
    for key, value in logged.items():
        assert math.isfinite(value), (options, key, value)
    return True


def check(name, tmp_path_factory, examples):
    folder, trained = str(tmp_path_factory.mktemp("run")), []

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(options_of(name))
    def run(drawn):
        trained.append(refused_or_trained(name, *drawn, folder))

    run()
    assert 0 < sum(trained) < len(trained)


@pytest.mark.parametrize("name", METHODS)
def test_whatever_is_not_refused_trains(tmp_path_factory, name):
    check(name, tmp_path_factory, examples=12)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_whatever_of_many_is_not_refused_trains(tmp_path_factory, name):
    check(name, tmp_path_factory, examples=150)
