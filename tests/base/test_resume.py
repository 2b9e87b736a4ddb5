"""Resume: a run that is killed after any step, or while it writes, ends as the run that was not."""

import json
import os
import shutil
from collections import defaultdict, deque
from pathlib import Path

import numpy
import pandas
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainerCallback
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import get_last_checkpoint

from credit_trl.base import resume, resume_state
from tests.helpers.launching import HELPERS, launch
from tests.helpers.resume_run import BASE, KillAfterSaving, KilledError, make, state_of, train


def train_with_kills(method, model, folder, **options):
    """Kill the run after every checkpoint, and go on with a new trainer each time."""
    for start in range(100):
        try:
            return train(method, model, folder, start > 0, callbacks=[KillAfterSaving()], **options)
        except KilledError:
            continue
    raise AssertionError("the run does not get on")


def assert_same(expected, trainer):
    expected, got = state_of(expected), state_of(trainer)
    assert expected.keys() - got.keys() == set()
    assert [name for name in expected if expected[name] != got[name]] == []


# --- the reason ---


def test_trl_starts_a_new_cycle_in_the_middle_of_the_old_one(tiny_model, tmp_path):
    whole = train("grpo", tiny_model, tmp_path / "whole", num_iterations=2, max_steps=4)
    for step, same in ((1, False), (2, True)):  # a generation batch is used for steps 1 and 2, another for 3 and 4
        folder = tmp_path / f"from {step}"
        resumed = train(
            "grpo", tiny_model, folder, str(tmp_path / "whole" / f"checkpoint-{step}"), num_iterations=2, max_steps=4
        )
        assert (state_of(resumed)["weights"] == state_of(whole)["weights"]) == same


# --- to the bit ---

VARIANTS = {
    # Four steps an epoch: the second epoch's order is drawn after the first one's.
    "s_trace": dict(method="s_trace", num_iterations=2, max_steps=7, logging_steps=3),
    "s_trace, LoRA": dict(method="s_trace", num_iterations=2, max_steps=3, lora=True),
    "s_trace, evaluation, KL and entropy": dict(
        method="s_trace",
        num_iterations=1,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        beta=0.1,
        use_bias_correction_kl=False,
        use_adaptive_entropy=True,
        entropy_coef=0.01,
    ),
    "grpo_lambda, accumulation": dict(
        method="grpo_lambda",
        num_iterations=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=5,
        logging_steps=4,
    ),
    "eps_weight, more steps of a generation batch than of an update": dict(
        method="eps_weight",
        num_iterations=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        max_steps=5,
    ),
    "srpo": dict(method="srpo", num_iterations=2, max_steps=3),
    "rrpo, accumulation": dict(
        method="rrpo",
        num_iterations=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        max_steps=3,
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_is_killed_after_every_step_equals_one_that_is_not(name, tiny_model, tmp_path):
    resets = VARIANTS[name]["method"] in ("srpo", "rrpo")
    options = dict(model=BASE if resets else tiny_model, log_completions=True) | VARIANTS[name]
    whole = train(folder=tmp_path / "whole", **options)
    resumed = train_with_kills(folder=tmp_path / "killed", **options)
    assert_same(whole, resumed)
    if resets:
        assert any((part["tool_mask"] == 0).any() for part in whole._buffered_inputs)  # prefixes were in the buffer
    tables = sorted(path.name for path in (tmp_path / "whole" / "completions").iterdir())
    assert tables
    for table in tables:
        first, second = (pandas.read_parquet(tmp_path / run / "completions" / table) for run in ("whole", "killed"))
        pandas.testing.assert_frame_equal(first, second, check_exact=True)


def test_a_run_that_was_over_stays_over(tiny_model, tmp_path):
    """Three steps of an epoch of four: the Trainer itself would go on with the epoch."""
    options = dict(method="s_trace", model=tiny_model, folder=tmp_path, num_iterations=2, max_steps=3)
    whole = train(**options)
    resumed = train(resume=True, **options)
    expected, got = state_of(whole), state_of(resumed)
    for name in ("weights", "optimizer", "schedule", "state", "_step", "_tr_loss", "_total_loss_scalar"):
        assert got[name] == expected[name], name
    assert resumed.state.log_history[-1]["train_loss"] == whole.state.log_history[-1]["train_loss"] != 0


def test_the_time_of_a_run_is_that_of_all_its_parts(tiny_model, tmp_path):
    options = dict(method="s_trace", model=tiny_model, folder=tmp_path, max_steps=2)
    with pytest.raises(KilledError):
        train(callbacks=[KillAfterSaving()], **options)
    path = tmp_path / "checkpoint-1" / "in_flight_0.json"
    state = json.loads(path.read_text())
    assert 0 < state["seconds"] < 100
    path.write_text(json.dumps(state | {"seconds": 1000.0}))
    runtime = train(resume=True, **options).state.log_history[-1]["train_runtime"]
    assert 1000 < runtime < 1100


# --- whole, or not there ---


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("where", "name", "last"),
    [
        (Trainer, "save_model", 2),
        (Trainer, "_save_optimizer_and_scheduler", 2),
        (Trainer, "_save_rng_state", 2),
        (resume_state, "save_file", 2),
        (resume.os, "rename", 2),
        (resume, "rotate_checkpoints", 3),
    ],
)
def test_a_run_that_is_killed_while_it_writes_resumes_from_what_is_whole(
    where, name, last, tiny_model, tmp_path, monkeypatch
):
    options = dict(method="s_trace", model=tiny_model, num_iterations=4, max_steps=4, save_total_limit=2)
    whole = train(folder=tmp_path / "whole", **options)
    calls = []

    def killed(*positional, **keywords):
        calls.append(name)
        if len(calls) == 3:
            raise KilledError
        return original(*positional, **keywords)

    original = getattr(where, name)
    with monkeypatch.context() as patch:
        patch.setattr(where, name, killed)
        with pytest.raises(KilledError):
            train(folder=tmp_path / "killed", **options)
    assert Path(get_last_checkpoint(tmp_path / "killed")).name == f"checkpoint-{last}"
    resumed = train(folder=tmp_path / "killed", resume=True, **options)
    assert_same(whole, resumed)
    folders = {path.name for path in (tmp_path / "killed").iterdir() if path.is_dir()}
    assert folders == {"checkpoint-3", "checkpoint-4"}  # nothing is left behind


def test_a_checkpoint_of_an_earlier_run_is_replaced(tiny_model, tmp_path):
    options = dict(method="s_trace", model=tiny_model, folder=tmp_path, max_steps=1)
    train(**options)
    (tmp_path / "checkpoint-1" / "left over").write_text("by the earlier run")
    weights = (tmp_path / "checkpoint-1" / "model.safetensors").read_bytes()
    train(learning_rate=1e-2, **options)
    assert not (tmp_path / "checkpoint-1" / "left over").exists()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_bytes() != weights


def test_the_best_checkpoint_is_found_where_it_ends_up(tiny_model, tmp_path):
    trainer = train(
        "s_trace",
        tiny_model,
        tmp_path,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="reward",
        greater_is_better=True,
        save_total_limit=1,
    )
    best = trainer.state.best_model_checkpoint
    assert Path(best).parent == tmp_path
    assert Path(best).is_dir()
    state = json.loads((Path(best) / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == best


@pytest.mark.parametrize(
    "strategy",
    [
        dict(save_strategy="no"),
        dict(save_strategy="best", metric_for_best_model="reward", eval_strategy="steps", eval_steps=1),
    ],
    ids=["no", "best"],
)
def test_a_checkpoint_that_is_asked_for_within_a_step_is_written_at_its_end(
    strategy, tiny_model, tmp_path, monkeypatch
):
    # Under "best", the evaluation after the step says that there is nothing to save.
    monkeypatch.setattr(Trainer, "_determine_best_metric", lambda self, metrics, trial: False)

    class Asks(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 1:
                trainer._save_checkpoint(trainer.model, trial=None)
                assert not list(tmp_path.glob("*/checkpoint*"))

    options = dict(method="s_trace", model=tiny_model, num_iterations=4, max_steps=3, **strategy)
    trainer = make(folder=tmp_path / "whole", callbacks=[Asks()], **options)
    trainer.train()
    assert [path.name for path in tmp_path.glob("*/checkpoint*")] == ["checkpoint-2"]
    resumed = train(folder=tmp_path / "again", resume=str(tmp_path / "whole" / "checkpoint-2"), **options)
    assert_same(trainer, resumed)


def test_a_checkpoint_before_the_first_step_is_one_too(tiny_model, tmp_path):
    class Asks(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            trainer._save_checkpoint(trainer.model, trial=None)

    options = dict(method="s_trace", model=tiny_model, max_steps=2, save_strategy="no")
    trainer = make(folder=tmp_path / "whole", callbacks=[Asks()], **options)
    trainer.train()
    resumed = train(folder=tmp_path / "again", resume=str(tmp_path / "whole" / "checkpoint-0"), **options)
    assert_same(trainer, resumed)


class Terminates(TrainerCallback):
    """As SIGTERM under `enable_jit_checkpoint`, after the callback of transformers has seen `event`."""

    def __init__(self, event, step):
        self.step = step
        setattr(self, event, self.request)

    def request(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            callbacks = self.trainer.callback_handler.callbacks
            [jit] = [callback for callback in callbacks if isinstance(callback, JITCheckpointCallback)]
            jit.jit_manager.is_checkpoint_requested = True


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("event", "step", "saved"),
    [
        ("on_step_begin", 1, 2),  # transformers asks before the optimizer's step
        ("on_pre_optimizer_step", 0, 1),  # after it
        ("on_step_end", 1, 1),  # before the next step, of which one micro-batch is still trained
    ],
)
def test_a_terminated_run_leaves_a_whole_checkpoint_and_no_empty_folder(
    event, step, saved, tiny_model, tmp_path, monkeypatch, caplog
):
    options = dict(
        method="s_trace",
        model=tiny_model,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=3,
        save_strategy="epoch",
        enable_jit_checkpoint=True,
    )
    whole = train(folder=tmp_path / "whole", **options)
    terminates, there, write = Terminates(event, step), [], resume_state.write
    trainer = make(folder=tmp_path / "killed", callbacks=[terminates], **options)
    terminates.trainer = trainer

    def looks(*arguments):
        there.append(list((tmp_path / "killed").glob("checkpoint*")))
        write(*arguments)

    monkeypatch.setattr(resume_state, "write", looks)
    trainer.train()
    assert there[0] == []  # where a kill during the writing would resume from
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint*")] == [f"checkpoint-{saved}"]
    assert ("between two micro-batches" in caplog.text) == (event == "on_step_end")
    resumed = train(folder=tmp_path / "again", resume=str(tmp_path / "killed" / f"checkpoint-{saved}"), **options)
    assert_same(whole, resumed)


def test_a_run_that_is_stopped_between_two_micro_batches_writes_no_checkpoint_there(tiny_model, tmp_path, caplog):
    class Stops(TrainerCallback):
        saved = 0

        def on_substep_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 1

        def on_save(self, args, state, control, **kwargs):
            self.saved += 1

    stops = Stops()
    options = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=3, save_strategy="epoch")
    trainer = train("s_trace", tiny_model, tmp_path, callbacks=[stops], **options)
    assert (trainer.state.global_step, trainer._step) == (1, 3)  # weights of one step, and half of the next one's
    assert not list(tmp_path.glob("checkpoint*")) and stops.saved == 0
    assert "No checkpoint is written after step 1" in caplog.text


def test_a_checkpoint_is_uploaded_from_where_it_ends_up(tiny_model, tmp_path, monkeypatch):
    uploaded = []
    monkeypatch.setattr(
        Trainer, "_push_from_checkpoint", lambda self, folder: uploaded.append((folder, os.listdir(folder)))
    )
    trainer = make("s_trace", tiny_model, tmp_path, max_steps=1)
    trainer.args.push_to_hub = True
    trainer.train()
    [(folder, files)] = uploaded
    assert folder == str(tmp_path / "checkpoint-1")
    assert {"model.safetensors", "trainer_state.json", "in_flight_0.json"} <= set(files)


# --- another configuration ---


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    train("s_trace", tiny_model, folder, max_steps=1)
    return str(folder / "checkpoint-1")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (dict(num_generations=2), "num_generations was 4"),
        (dict(num_iterations=1), "num_iterations was 2"),
        (dict(per_device_train_batch_size=4), "per_device_train_batch_size was 8"),
        (dict(gradient_accumulation_steps=2), "gradient_accumulation_steps was 1"),
        (dict(steps_per_generation=2), "steps_per_generation was 1"),
        (dict(beta=0.1, use_bias_correction_kl=False), "beta != 0 was False"),
        (dict(trace_target="advantage", trace_normalize=False, trust_region="trace"), "trace_target was 'ratio'"),
        (dict(trust_region="trace"), "trust_region was 'token'"),
        (dict(method="grpo_lambda"), "trainer was 'S-trace'"),
    ],
)
def test_what_the_buffer_depends_on_has_to_stay(changes, name, tiny_model, tmp_path, checkpoint):
    with pytest.raises(ValueError, match=name):
        train(**(dict(method="s_trace", model=tiny_model, folder=tmp_path, resume=checkpoint, max_steps=2) | changes))


def test_a_checkpoint_that_was_refused_leaves_nothing_behind(tiny_model, tmp_path, checkpoint):
    trainer = make("s_trace", tiny_model, tmp_path, num_generations=2, max_steps=2, save_strategy="no")
    with pytest.raises(ValueError, match="num_generations was 4"):
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.train()
    assert trainer._step == trainer.state.global_step == 2
    assert trainer._earlier_seconds == 0


def test_a_checkpoint_of_another_number_of_processes_is_refused(tiny_model, tmp_path, checkpoint):
    path = tmp_path / "checkpoint-1"
    shutil.copytree(checkpoint, path)
    state = json.loads((path / "in_flight_0.json").read_text())
    state["settings"]["number of processes"] = 2
    (path / "in_flight_0.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="number of processes was 2"):
        train("s_trace", tiny_model, tmp_path, str(path), max_steps=2)


@pytest.mark.parametrize("change", [dict(max_steps=3), dict(learning_rate=1e-3), dict(max_completion_length=12)])
def test_what_it_does_not_depend_on_may_change(change, tiny_model, tmp_path, checkpoint):
    trainer = train("s_trace", tiny_model, tmp_path, checkpoint, **(dict(max_steps=2) | change))
    assert trainer._step == trainer.state.global_step == trainer.args.max_steps


@pytest.mark.parametrize("method", ["grpo", "s_trace"])
def test_a_checkpoint_without_what_was_in_flight_is_said_to_be_one(method, tiny_model, tmp_path, caplog):
    train(method, tiny_model, tmp_path, max_steps=1, save_only_model=method == "s_trace")
    assert not list((tmp_path / "checkpoint-1").glob("in_flight*"))
    train("s_trace", tiny_model, tmp_path, True, max_steps=2)
    assert "holds weights but not what was in flight" in caplog.text


def test_a_reference_model_that_moves_is_said_to_be_missing(tiny_model, tmp_path, caplog):
    options = dict(beta=0.1, use_bias_correction_kl=False, sync_ref_model=True)
    train("s_trace", tiny_model, tmp_path, max_steps=1, **options)
    train("s_trace", tiny_model, tmp_path, True, max_steps=2, **options)
    assert "do not hold the reference model" in caplog.text


# --- the files ---


def test_what_is_in_flight_comes_back_as_it_was(tmp_path):
    numbers = torch.arange(12, dtype=torch.bfloat16).reshape(4, 3)
    image = Image.fromarray(numpy.arange(24, dtype=numpy.uint8).reshape(2, 4, 3))
    state = {
        "parts": [{"ids": numbers[:2], "mask": numbers[2:].T > 8, "items": torch.tensor(7), "none": None}],
        "log": {"number": 0.1 + 0.2, "nan": float("nan"), "inf": -float("inf"), "text": "λ\n", "true": True},
        "prompts": deque([[{"role": "user", "content": [{"type": "image", "image": image}]}]]),
        "logged": [numpy.float32(0.1), numpy.int8(-3), numpy.bool_(True), Path("of any type")],
        "odd": [numpy.datetime64("2026-11-21"), numpy.complex64(1 + 2j), {(1, "a"): 2}],
    }
    resume_state.write(str(tmp_path), 3, state)
    again = resume_state.read(str(tmp_path), 3)
    [part], [before] = again["parts"], state["parts"]
    for name in ("ids", "mask", "items"):
        assert torch.equal(part[name], before[name]) and part[name].dtype == before[name].dtype
    assert part["none"] is None
    assert json.dumps(again["log"]) == json.dumps(state["log"])
    shown = again["prompts"][0][0]["content"][0]["image"]
    assert (shown.mode, shown.size, shown.tobytes()) == (image.mode, image.size, image.tobytes())
    assert again["logged"] == [float(numpy.float32(0.1)), -3, True, "of any type"]
    assert again["odd"] == ["2026-11-21", "(1+2j)", {"(1, 'a')": 2}]
    assert resume_state.read(str(tmp_path), 0) is None


def test_containers_keep_their_types_and_lose_what_they_held():
    logs = {"text": deque("abc", maxlen=3), "rewards": defaultdict(lambda: deque(maxlen=2), stale=deque([1]))}
    resume_state.refill(logs, {"text": ["d"], "rewards": {"right": [1, 2]}})
    assert logs == {"text": deque("d"), "rewards": {"right": deque([1, 2])}}
    logs["rewards"]["right"].append(3)
    assert list(logs["rewards"]["right"]) == [2, 3]
    logs["text"].extend("efg")
    assert len(logs["text"]) == 3


# --- signals, and two processes ---


@pytest.mark.slow
@pytest.mark.parametrize(("method", "processes"), [("s_trace", 1), ("srpo", 1), ("grpo_lambda", 2)])
def test_sigkill_at_random_moments_and_while_writing(method, processes, tiny_model, tmp_path):
    model = BASE if method == "srpo" else tiny_model
    script = str(HELPERS / "resume_run.py")
    launch(None, tmp_path, script, method, model, str(tmp_path), str(processes), "8")
    report = json.loads((tmp_path / "report.json").read_text())
    print(report)
    assert report["kills"] == 8
    assert report["while writing"] >= 1
    assert report["runs"] and all(run["differs in"] == [] for run in report["runs"])
