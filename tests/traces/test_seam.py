"""A loss that goes past the credit assignment ends the step with an error, instead of training plain GRPO unseen."""

import sys
import types

import pytest
import torch
from trl import GRPOTrainer

from credit_trl import (
    GRPOLambdaConfig,
    GRPOLambdaTrainer,
    SRPOConfig,
    SRPOTrainer,
    STraceConfig,
    STraceTrainer,
)
from tests.helpers.comparing import largest_difference, same_log, same_weights

TRAINERS = {
    "s_trace": (STraceTrainer, STraceConfig, dict()),
    "advantage": (GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_target="advantage")),
}
PATCHED = "GRPOTrainer.{} is not TRL's but comes from " + __name__.replace(".", r"\.")
PLAIN = "Going on would train without the credit of"


def own_forward(model, inputs):
    """Log-probabilities as a library with kernels of its own computes them."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    length = inputs["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1]
    return logits.log_softmax(-1).gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)


def own_loss(logps, inputs):
    old = inputs.get("old_per_token_logps", logps.detach())
    loss = -(logps - old).exp() * inputs["advantages"].reshape(len(logps), -1) * inputs["completion_mask"]
    return loss.sum() / inputs["completion_mask"].sum()


def past_the_forward_pass(self, model, inputs):
    return own_loss(own_forward(model, inputs), inputs)


def past_the_inputs(self, model, inputs):
    """Takes its inputs before it asks for log-probabilities."""
    before = {name: inputs.get(name) for name in (*inputs, "old_per_token_logps")}
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    keep = inputs["completion_ids"].shape[1]
    logps, *_ = self._get_per_token_logps_and_entropies(model, ids, mask, keep, compute_entropy=True)
    return own_loss(logps, before)


def twice(self, model, inputs):
    past_the_inputs(self, model, inputs)
    return past_the_inputs(self, model, inputs)


def own_compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    return past_the_forward_pass(self, model, inputs)


@pytest.mark.parametrize("method", TRAINERS)
@pytest.mark.parametrize(
    ("name", "patch", "what"),
    [
        ("_compute_loss", past_the_forward_pass, r"`_get_per_token_logps_and_entropies` .*, and asked 0 times"),
        ("_compute_loss", past_the_inputs, r"did not read advantages"),
        ("_compute_loss", twice, r"and asked 2 times"),
        ("compute_loss", own_compute_loss, r"without calling the trainer's `_compute_loss`"),
    ],
)
def test_a_patched_loss_ends_the_step(run, monkeypatch, method, name, patch, what):
    trainer_class, config_class, options = TRAINERS[method]
    monkeypatch.setattr(GRPOTrainer, name, patch)
    finished = []

    class Watched(trainer_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.before = {key: value.clone() for key, value in self.model.state_dict().items()}
            finished.append(self)

    with pytest.raises(RuntimeError, match=f"{what}.*{PLAIN} Watched.*{PATCHED.format(name)}"):
        run(Watched, config_class, **options)
    # Nothing was trained, and TRL's trainer itself trains under this patch.
    assert all(torch.equal(value, finished[0].before[key]) for key, value in finished[0].model.state_dict().items())
    run(GRPOTrainer, max_steps=1)


@pytest.mark.parametrize("method", TRAINERS)
def test_a_training_step_past_the_trainers_loss_is_an_error(run, monkeypatch, method):
    def step(self, model, inputs, num_items_in_batch=None):
        return past_the_forward_pass(self, model, self._prepare_inputs(inputs))

    monkeypatch.setattr(GRPOTrainer, "training_step", step)
    trainer_class, config_class, options = TRAINERS[method]
    with pytest.raises(RuntimeError, match=f"without calling .*{PATCHED.format('training_step')}"):
        run(trainer_class, config_class, **options)


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("method", TRAINERS)
def test_a_subclass_with_a_training_step_of_its_own_is_an_error(run, prompts, method, evaluated):
    trainer_class, config_class, options = TRAINERS[method]
    before = {}

    class Stepping(trainer_class):
        def training_step(self, model, inputs, num_items_in_batch=None):
            before.update((name, value.clone()) for name, value in self.model.state_dict().items())
            model.train()
            loss = past_the_forward_pass(self, model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            steps.append(self)
            return loss.detach()

    steps = []
    if evaluated:  # whose losses have the credit
        options = options | dict(eval_strategy="steps", eval_on_start=True, per_device_eval_batch_size=4)
    with pytest.raises(
        RuntimeError, match=r"without calling .*Stepping\.training_step is not TRL's but comes from tests"
    ):
        run(Stepping, config_class, trainer_options=dict(eval_dataset=prompts), **options)
    assert len(steps) == 1
    assert all(torch.equal(value, before[name]) for name, value in steps[0].model.state_dict().items())


def test_a_loss_of_an_evaluation_does_not_vouch_for_a_training_step(run, prompts):
    class Both(STraceTrainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            with torch.no_grad():
                return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            return past_the_forward_pass(self, model, self._prepare_inputs(inputs)).detach()

    evaluation = dict(eval_strategy="steps", eval_on_start=True, per_device_eval_batch_size=4)
    with pytest.raises(RuntimeError, match="without calling the trainer's `_compute_loss`"):
        run(Both, STraceConfig, trainer_options=dict(eval_dataset=prompts), **evaluation)


@pytest.mark.parametrize(("trainer_class", "config_class"), [(STraceTrainer, STraceConfig), (SRPOTrainer, SRPOConfig)])
def test_a_training_step_may_evaluate_and_leave_the_model_in_evaluation_mode(run, prompts, trainer_class, config_class):
    class Evaluating(trainer_class):
        def training_step(self, *arguments, **keywords):
            loss = super().training_step(*arguments, **keywords)
            self.evaluate()
            self.model.eval()
            return loss

        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            self.model.eval()
            return loss

    evaluation = dict(trainer_options=dict(eval_dataset=prompts), per_device_eval_batch_size=4)
    trainer, *_ = run(Evaluating, config_class, max_steps=2, **evaluation)
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("method", TRAINERS)
def test_a_loss_that_is_replaced_on_the_trainer_is_an_error(run, method):
    trainer_class, config_class, options = TRAINERS[method]

    class Replaced(trainer_class):
        def train(self, **keywords):
            self.compute_loss = types.MethodType(own_compute_loss, self)
            return super().train(**keywords)

    with pytest.raises(RuntimeError, match=PLAIN):
        run(Replaced, config_class, **options)


def halved(method):
    """Return `method` with half of its log-probabilities."""

    def compute(self, *args, **kwargs):
        logps, *others = method(self, *args, **kwargs)
        return logps / 2, *others

    return compute


@pytest.mark.parametrize("where", ["a subclass", "the trainer"])
@pytest.mark.parametrize("method", TRAINERS)
def test_the_credit_is_of_the_log_probabilities_that_the_loss_gets(run, monkeypatch, method, where):
    """A user's method that changes what TRL computes acts as if TRL's own did."""
    trainer_class, config_class, options = TRAINERS[method]

    class Halved(trainer_class):
        if where == "a subclass":
            _get_per_token_logps_and_entropies = halved(trainer_class._get_per_token_logps_and_entropies)

        def train(self, **keywords):
            if where == "the trainer":
                theirs = halved(GRPOTrainer._get_per_token_logps_and_entropies)
                self._get_per_token_logps_and_entropies = types.MethodType(theirs, self)
            return super().train(**keywords)

    trainer, actual, log = run(Halved, config_class, **options)
    assert ("_get_per_token_logps_and_entropies" in vars(trainer)) == (where == "the trainer")
    monkeypatch.setattr(
        GRPOTrainer, "_get_per_token_logps_and_entropies", halved(GRPOTrainer._get_per_token_logps_and_entropies)
    )
    _, expected, expected_log = run(trainer_class, config_class, **options)
    same_weights(actual, expected)
    same_log(log, expected_log)


@pytest.mark.parametrize("method", TRAINERS)
def test_a_subclass_with_a_forward_pass_of_its_own_or_in_parts_trains(run, method):
    trainer_class, config_class, options = TRAINERS[method]

    class Own(trainer_class):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            return GRPOTrainer._get_per_token_logps_and_entropies(self, *args, **kwargs)

    class InParts(trainer_class):
        def _get_per_token_logps_and_entropies(self, model, ids, mask, keep, *args, **kwargs):
            compute = super()._get_per_token_logps_and_entropies
            parts = [
                compute(model, ids[i : i + 2], mask[i : i + 2], keep, *args, **kwargs) for i in range(0, len(ids), 2)
            ]
            logps, entropies, _ = zip(*parts, strict=True)
            return torch.cat(logps), None if entropies[0] is None else torch.cat(entropies), None

    class CallingItself(trainer_class):
        def _get_per_token_logps_and_entropies(self, model, ids, mask, keep, *args, **kwargs):
            if len(ids) <= 2:
                return super()._get_per_token_logps_and_entropies(model, ids, mask, keep, *args, **kwargs)
            compute = self._get_per_token_logps_and_entropies
            parts = [compute(model, ids[rows], mask[rows], keep, *args, **kwargs) for rows in halves(len(ids))]
            logps, entropies, _ = zip(*parts, strict=True)
            return torch.cat(logps), None if entropies[0] is None else torch.cat(entropies), None

    def halves(count):
        return slice(count // 2), slice(count // 2, None)

    _, expected, _ = run(trainer_class, config_class, max_steps=2, **options)
    _, actual, _ = run(Own, config_class, max_steps=2, **options)
    same_weights(actual, expected)
    for kind in (InParts, CallingItself):
        _, actual, _ = run(kind, config_class, max_steps=2, **options)
        assert largest_difference(actual, expected) < 1e-4


@pytest.mark.parametrize("method", TRAINERS)
def test_a_subclass_that_hands_on_inputs_of_its_own_trains(run, method):
    """The inputs are plain dictionaries for it, which it may copy and add to, and its loss may add to TRL's."""
    trainer_class, config_class, options = TRAINERS[method]

    class Adding(trainer_class):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch) + 0.0

        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, {**inputs, "theirs": None}) * 1.0

    _, expected, _ = run(trainer_class, config_class, **options)
    _, actual, _ = run(Adding, config_class, **options)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_a_ratio_that_the_loss_does_not_read_is_named(run, monkeypatch):
    original = GRPOTrainer._compute_loss

    class OnPolicy(dict):
        """A loss that takes every ratio for 1, as losses for fully on-policy training do."""

        def __init__(self, inputs):
            super().__init__(inputs)
            self.inputs = inputs

        def __getitem__(self, key):
            return self.inputs[key]

        def get(self, key, default=None):
            return default if key == "old_per_token_logps" else self.inputs.get(key, default)

    monkeypatch.setattr(
        GRPOTrainer, "_compute_loss", lambda self, model, inputs: original(self, model, OnPolicy(inputs))
    )
    with pytest.raises(RuntimeError, match=f"did not read old_per_token_logps, in which the credit is.*{PLAIN}"):
        run(STraceTrainer, STraceConfig, num_iterations=1)


def test_a_kl_term_that_is_computed_in_another_way_is_named(run, monkeypatch):
    """The own ratio goes into TRL's `beta * per_token_kl` from the left."""
    original = GRPOTrainer._compute_loss

    def other(self, model, inputs):
        loss = original(self, model, inputs)
        self.beta.times_used = 0
        return loss

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", other)
    with pytest.raises(RuntimeError, match=r"used `self.beta \* per_token_kl` 0 times instead of once"):
        run(STraceTrainer, STraceConfig, beta=0.1)


@pytest.mark.parametrize(
    ("name", "patch"), [("_compute_loss", past_the_forward_pass), ("compute_loss", own_compute_loss)]
)
def test_evaluation_under_a_patched_loss_ends_too(run, monkeypatch, prompts, name, patch):
    trainer, *_ = run(STraceTrainer, STraceConfig, max_steps=1, trainer_options=dict(eval_dataset=prompts))
    assert "eval_loss" in trainer.evaluate()
    monkeypatch.setattr(GRPOTrainer, name, patch)
    with pytest.raises(RuntimeError, match=PLAIN):
        trainer.evaluate()


def test_a_loss_that_is_replaced_on_the_trainer_itself_ends_the_step(run):
    class Replaced(STraceTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._compute_loss = types.MethodType(past_the_forward_pass, self)

    with pytest.raises(RuntimeError, match="without calling the trainer's `_compute_loss`"):
        run(Replaced, STraceConfig)


def test_unsloth_is_named_where_it_is_found(run, monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", past_the_forward_pass)
    with pytest.raises(RuntimeError) as without:
        run(STraceTrainer, STraceConfig)
    monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    with pytest.raises(RuntimeError, match="Unsloth is imported, and it replaces TRL's trainers"):
        run(STraceTrainer, STraceConfig)
    assert "Unsloth" not in str(without.value)


def test_a_loss_that_passes_once_does_not_vouch_for_the_next(run, monkeypatch):
    original = GRPOTrainer.compute_loss

    def patch(self, model, inputs, **keywords):
        if self.state.global_step == 2:
            return past_the_forward_pass(self, model, inputs)
        return original(self, model, inputs, **keywords)

    monkeypatch.setattr(GRPOTrainer, "compute_loss", patch)
    steps = []

    class Watched(STraceTrainer):
        def training_step(self, *args, **kwargs):
            steps.append(self.state.global_step)
            return super().training_step(*args, **kwargs)

    with pytest.raises(RuntimeError, match=PLAIN):
        run(Watched, STraceConfig)
    assert steps == [0, 1, 2]
