"""What is said once about a configuration: it has to be true, and its advice has to help."""

import pytest
import torch
from peft import LoraConfig
from trl import GRPOConfig

from credit_trl import GRPOLambdaConfig, GRPOLambdaTrainer, STraceConfig, STraceTrainer
from credit_trl.traces.notices import dropout_remedies, notices

ONES, NOISE, DROPOUT = "Every importance ratio will be 1", "by numerical noise alone", "The model has dropout"
NOTHING = "the traces then do nothing"
VLLM = dict(use_vllm=True)


def said(tmp_path, config_class=GRPOLambdaConfig, model=None, **options):
    args = config_class(str(tmp_path), use_cpu=True, bf16=False, **options)
    text = " ".join(notices(args, model or torch.nn.Linear(1, 1)))
    return {notice for notice in (ONES, NOISE, DROPOUT, NOTHING, "loss_type='cispo'") if notice in text}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(), {ONES}),
        (dict(num_iterations=2), set()),
        (dict(steps_per_generation=2), set()),
        (dict(gradient_accumulation_steps=4, steps_per_generation=2), {ONES}),
        # TRL computes the old log-probabilities anew under its correction, and takes the policy's own without it.
        (VLLM, {NOISE}),
        (VLLM | dict(vllm_importance_sampling_correction=False), {ONES}),
        (VLLM | dict(num_iterations=2), set()),
        (dict(loss_type="cispo"), {"loss_type='cispo'"}),
        (dict(trace_gradient="own"), {ONES, NOTHING}),
        (VLLM | dict(trace_gradient="own"), {NOISE, NOTHING}),
        (dict(num_iterations=2, trace_gradient="own"), set()),
        (dict(trace_target="advantage"), set()),
        (dict(trace_lambda=0.0), set()),
    ],
)
def test_what_is_said_of_the_ratios(tmp_path, options, expected):
    assert said(tmp_path, **options) == expected


@pytest.mark.parametrize(
    ("config_class", "options", "expected"),
    [
        (GRPOLambdaConfig, dict(num_iterations=2), {DROPOUT}),
        (GRPOLambdaConfig, VLLM, {DROPOUT, NOISE}),
        (GRPOLambdaConfig, dict(), {ONES}),  # the ratios are of one forward pass
        (GRPOLambdaConfig, dict(num_iterations=2, trace_normalize=True), set()),
        (GRPOLambdaConfig, dict(num_iterations=2, trace_target="advantage"), set()),
        (STraceConfig, dict(num_iterations=2), set()),
    ],
)
def test_what_is_said_of_dropout(tmp_path, config_class, options, expected):
    assert said(tmp_path, config_class, torch.nn.Sequential(torch.nn.Dropout(0.1)), **options) == expected
    assert DROPOUT not in said(tmp_path, config_class, torch.nn.Sequential(torch.nn.Dropout(0.0)), **options)


def test_every_kind_of_dropout_has_its_own_setting():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lora_dropout = torch.nn.ModuleDict({"default": torch.nn.Dropout(0.1)})

    model = Model()
    assert dropout_remedies(model) == ["lora_dropout=0.0 in the LoraConfig"]
    model.dropout = torch.nn.Dropout(0.1)
    model.config = type("Config", (), {"attention_dropout": 0.1})
    assert dropout_remedies(model)[1:] == ["disable_dropout=True", "attention_dropout=0.0 in model_init_kwargs"]


def lora(dropout):
    return dict(peft_config=LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout, init_lora_weights=False))


def noise(log):
    return max(entry["trace/ratio_std"] for entry in log if "trace/ratio_std" in entry)


def test_an_unnormalized_trace_adds_up_dropouts_noise_and_the_advice_stops_that(run, caplog):
    """The weights never change (learning rate 0), so that every ratio but 1 is noise."""

    def noise_of(dropout=0.02, **options):
        options = dict(learning_rate=0.0, num_iterations=2, max_steps=2, trainer_options=lora(dropout)) | options
        return noise(run(GRPOLambdaTrainer, GRPOLambdaConfig, **options)[2])

    trls = noise_of(trace_kernel="identity")
    normalized = noise_of(trace_normalize=True)
    assert DROPOUT not in caplog.text
    assert noise_of() > 1.5 * trls > 1.5 * normalized > 0
    assert caplog.text.count(DROPOUT) == 1 and "lora_dropout=0.0 in the LoraConfig, or trace_normalize" in caplog.text
    caplog.clear()
    assert noise_of(dropout=0.0) == noise_of(disable_dropout=True) == 0
    assert DROPOUT not in caplog.text


def test_a_trainer_says_it_once(run, caplog):
    run(STraceTrainer, GRPOConfig, num_iterations=1, max_steps=2)
    assert caplog.text.count(ONES) == 1
