"""Checkpoints that were moved, that were written by an earlier version, and whose weights have other names."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Trainer,
)
from trl import GRPOConfig, GRPOTrainer

from credit_trl import STraceConfig, STraceTrainer
from credit_trl.base import resume_state
from credit_trl.base.weights import not_loaded
from credit_trl.traces.trainer import TraceCredit
from scripts.pretrain_testbed import build_tokenizer
from tests.base.test_resume import assert_same
from tests.helpers.comparing import same_weights
from tests.helpers.options import experts
from tests.helpers.resume_run import BASE, KillAfterSaving, KilledError, make, train
from tests.helpers.training import QUIET_ON_CPU, digit_reward


class Bare(TraceCredit):
    """S-trace without exact resume: checkpoints are the Trainer's own."""

    config_class = STraceConfig


# --- moved folders ---

BEST = dict(
    max_steps=4,
    eval_strategy="steps",
    eval_steps=1,
    load_best_model_at_end=True,
    metric_for_best_model="reward",
    greater_is_better=True,
    save_total_limit=1,
)


@pytest.fixture
def first_is_best(monkeypatch):
    """Let the first evaluation be the best one."""

    def determine(trainer, metrics, trial):
        if trainer.state.global_step == 1:
            trainer.state.best_metric, trainer.state.best_global_step = 1.0, 1
        return trainer.state.global_step == 1

    monkeypatch.setattr(Trainer, "_determine_best_metric", determine)


class KillAtTwo(KillAfterSaving):
    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KilledError


def checkpoints(folder) -> set[str]:
    return {path.name for path in Path(folder).glob("checkpoint-*")}


def link(old: Path, new: Path) -> None:
    new.symlink_to(old.rename(new.with_name("behind")))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("move", "folder"),
    [
        (Path.rename, "{}/there/moved"),
        (Path.rename, "../moved"),
        (Path.rename, "../moved/"),
        (shutil.copytree, "{}/there/moved"),  # the old folder is still there
        (link, "../../there/./moved"),
    ],
    ids=["absolute", "relative", "a slash at its end", "copied", "a link, through its parent"],
)
@pytest.mark.parametrize("method", ["grpo", "s_trace"])
def test_the_best_checkpoint_of_a_moved_run_stays_and_is_loaded(
    method, move, folder, first_is_best, tiny_model, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "there" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(KilledError):
        train(method, tiny_model, "run", callbacks=[KillAtTwo()], **BEST)
    assert checkpoints("run") == {"checkpoint-1", "checkpoint-2"}
    best = load_file("run/checkpoint-1/model.safetensors")

    move(tmp_path / "here" / "run", tmp_path / "there" / "moved")
    monkeypatch.chdir(tmp_path / "there" / "deeper")
    folder = folder.format(tmp_path)
    trainer = train(method, tiny_model, folder, os.path.join(folder, "checkpoint-2"), **BEST)
    assert trainer.state.global_step == 4
    same_weights(trainer.model.state_dict(), best)
    assert checkpoints(folder) == {"checkpoint-1"}  # as the Trainer leaves it: the others went at the end
    assert os.path.samefile(trainer.state.best_model_checkpoint, os.path.join(folder, "checkpoint-1"))


def test_the_best_checkpoint_is_found_where_nothing_is_saved_after_the_move(
    first_is_best, tiny_model, tmp_path, monkeypatch
):
    """The Trainer itself looks for it when it saves, and ends with the last weights here."""
    with pytest.raises(KilledError):
        train("s_trace", tiny_model, tmp_path / "run", callbacks=[KillAtTwo()], **BEST)
    best = load_file(tmp_path / "run" / "checkpoint-1" / "model.safetensors")
    (tmp_path / "run").rename(tmp_path / "moved")
    trainer = make("s_trace", tiny_model, tmp_path / "moved", **(BEST | dict(max_steps=3)))
    monkeypatch.setattr(trainer, "_save_checkpoint", lambda model, trial: None)
    trainer.train(resume_from_checkpoint=str(tmp_path / "moved" / "checkpoint-2"))
    same_weights(trainer.model.state_dict(), best)


def test_a_checkpoint_that_is_resumed_into_another_folder_keeps_its_runs_best(first_is_best, tiny_model, tmp_path):
    with pytest.raises(KilledError):
        train("s_trace", tiny_model, tmp_path / "run", callbacks=[KillAtTwo()], **BEST)
    best = load_file(tmp_path / "run" / "checkpoint-1" / "model.safetensors")
    trainer = train("s_trace", tiny_model, tmp_path / "other", str(tmp_path / "run" / "checkpoint-2"), **BEST)
    same_weights(trainer.model.state_dict(), best)
    assert checkpoints(tmp_path / "run") == {"checkpoint-1", "checkpoint-2"}


# --- checkpoints as they were written before ---

KEYS = {
    *("_step", "_buffered_inputs", "_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"),
    *("_initial_global_step", "_metrics", "_logs", "settings", "seconds", "training"),
}
SETTINGS = {
    *("trainer", "number of processes", "beta != 0", "num_generations", "num_iterations"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "use_vllm"),
    "vllm_importance_sampling_correction",
}
OF_TRACES = {"_pending_totals", "_total_names"}, {"trace_target", "trust_region"}


def write_as_before(folder, process, state):
    """Write what is in flight as the first version did: a frozen record of the format, not the package's code."""
    tensors = {}

    def packed(value):
        if isinstance(value, dict):
            return {str(key): packed(item) for key, item in value.items()}
        if isinstance(value, torch.Tensor):
            tensors[str(len(tensors))] = value.detach().clone()
            return {"__tensor__": str(len(tensors) - 1)}
        if isinstance(value, str | int | float | None):
            return value
        return [packed(item) for item in value]

    Path(folder, f"in_flight_{process}.json").write_text(json.dumps(packed(state)))
    save_file(tensors, Path(folder, f"in_flight_{process}.safetensors"))


@pytest.mark.thorough
@pytest.mark.parametrize(("method", "added"), [("s_trace", OF_TRACES), ("srpo", (set(), set()))])
def test_a_checkpoint_of_the_first_version_resumes_to_the_bit(method, added, tiny_model, tmp_path, monkeypatch):
    model = BASE if method == "srpo" else tiny_model
    whole = train(method, model, tmp_path / "whole", max_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(resume_state, "write", write_as_before)
        train(method, model, tmp_path / "old", max_steps=3)
    old = tmp_path / "old" / "checkpoint-1"
    state = json.loads((old / "in_flight_0.json").read_text())
    # A key more, and older checkpoints lack it; a key less, and what they hold is not put back.
    assert (state.keys(), state["settings"].keys()) == (KEYS | added[0], SETTINGS | added[1])
    assert_same(whole, train(method, model, tmp_path / "again", str(old), max_steps=3))


def test_a_checkpoint_of_a_version_that_kept_less_is_refused_by_what_it_lacks(tiny_model, tmp_path):
    train("s_trace", tiny_model, tmp_path, max_steps=1)
    path = tmp_path / "checkpoint-1" / "in_flight_0.json"
    state = json.loads(path.read_text())
    del state["_pending_totals"]
    path.write_text(json.dumps(state))
    with pytest.raises(
        ValueError, match=r"another version of credit_trl, which did not keep _pending_totals: .*model\."
    ):
        train("s_trace", tiny_model, tmp_path, True, max_steps=2)


# --- weights under other names ---


def vision_model(path) -> Qwen2_5_VLForConditionalGeneration:
    """Return a tiny Qwen2.5-VL that was saved to `path` and loaded from there, as users have it."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=dict(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
                initializer_range=0.3,
                rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 3, 3]),
            ),
            vision_config=dict(
                depth=1,
                hidden_size=32,
                intermediate_size=64,
                num_heads=2,
                out_hidden_size=32,
                fullatt_block_indexes=[0],
            ),
            image_token_id=3,
            video_token_id=4,
            vision_start_token_id=5,
            vision_end_token_id=6,
        )
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(path)


def seeing(trainer_class, model, folder, **options):
    """Make a trainer of a model with an image tower, on text."""
    settings = QUIET_ON_CPU | dict(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=10,
        num_iterations=2,
        learning_rate=5e-3,
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
    )
    return trainer_class(
        model,
        digit_reward,
        args=GRPOConfig(**(settings | options)),
        train_dataset=Dataset.from_dict({"prompt": ["1+2:", "3*4-5:", "16-0+7:", "9*9:"]}),
        eval_dataset=Dataset.from_dict({"prompt": ["1+2:", "3*4-5:"]}),
        processing_class=AutoTokenizer.from_pretrained(BASE),
    )


@pytest.mark.parametrize("trainer_class", [STraceTrainer, Bare])
def test_weights_that_are_saved_under_other_names_are_loaded_whole(trainer_class, tmp_path):
    whole = seeing(trainer_class, vision_model(tmp_path / "model"), tmp_path / "run")
    whole.train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    saved = load_file(f"{checkpoint}/model.safetensors")
    assert not saved.keys() & {
        name for name, _ in whole.model.model.language_model.named_parameters(prefix="model.language_model")
    }
    resumed = seeing(trainer_class, vision_model(tmp_path / "model"), tmp_path / "again")
    resumed.train(resume_from_checkpoint=checkpoint)
    same_weights(resumed.model.state_dict(), whole.model.state_dict())
    if trainer_class is STraceTrainer:
        assert_same(whole, resumed)


def test_trl_goes_on_with_the_base_models_weights(tmp_path):
    """The reason: what was trained is gone, and only a line of the log says so."""
    model = vision_model(tmp_path / "model")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = seeing(GRPOTrainer, model, tmp_path / "run", max_steps=2)
    whole.train()
    resumed = seeing(GRPOTrainer, vision_model(tmp_path / "model"), tmp_path / "again", max_steps=2)
    resumed._load_from_checkpoint(str(tmp_path / "run" / "checkpoint-2"))
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    assert torch.equal(resumed.model.state_dict()[name], before[name])
    assert not torch.equal(whole.model.state_dict()[name], before[name])


def test_the_best_weights_are_loaded_whole_too(first_is_best, tmp_path):
    trainer = seeing(STraceTrainer, vision_model(tmp_path / "model"), tmp_path / "run", **(BEST | dict(max_steps=2)))
    kept = {}

    class Keeps(KillAfterSaving):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 1:
                kept.update({name: value.clone() for name, value in trainer.model.state_dict().items()})

    trainer.add_callback(Keeps())
    trainer.train()
    same_weights(trainer.model.state_dict(), kept)


def test_experts_that_are_saved_in_pieces_are_loaded_whole(tiny_model, tmp_path):
    class Experts(experts(tiny_model, tmp_path), STraceTrainer):
        pass

    options = dict(method=(Experts, STraceConfig, {}), model=tiny_model, max_steps=3)
    whole = train(folder=tmp_path / "run", **options)
    names = load_file(tmp_path / "run" / "checkpoint-1" / "model.safetensors").keys()
    assert names != whole.model.state_dict().keys()
    assert_same(whole, train(folder=tmp_path / "again", resume=str(tmp_path / "run" / "checkpoint-1"), **options))


@pytest.mark.parametrize("method", ["s_trace", (Bare, STraceConfig, {}), "srpo"], ids=["s_trace", "bare", "srpo"])
def test_a_checkpoint_that_lacks_weights_is_refused_by_their_names(method, tiny_model, tmp_path):
    train(method, tiny_model, tmp_path, max_steps=1)
    path = tmp_path / "checkpoint-1" / "model.safetensors"
    weights = load_file(path)
    lost = "model.layers.0.mlp.down_proj.weight"
    save_file({name: value for name, value in weights.items() if name != lost}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"checkpoint-1 lacks 1 of the \d+ weights of Qwen3ForCausalLM: {lost}\."):
        train(method, tiny_model, tmp_path, True, max_steps=2)


def test_weights_of_a_whole_model_are_not_taken_for_an_adapters(tiny_model, tmp_path):
    train("s_trace", tiny_model, tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=r"lacks \d+ of the \d+ weights of PeftModel\w*: base_model"):
        train("s_trace", tiny_model, tmp_path, True, max_steps=2, lora=True)


@pytest.mark.thorough
def test_adapters_shards_and_tied_weights_load_as_ever(tiny_model, tmp_path, monkeypatch, caplog):
    train("s_trace", tiny_model, tmp_path / "adapter", max_steps=1, lora=True)
    train("s_trace", tiny_model, tmp_path / "adapter", True, max_steps=2, lora=True)

    save = Trainer.save_model

    def save_in_shards(self, output_dir=None, _internal_call=False):
        save(self, output_dir, _internal_call)
        os.remove(os.path.join(output_dir, "model.safetensors"))
        self.model.save_pretrained(output_dir, max_shard_size="5KB")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_model", save_in_shards)
        whole = train("s_trace", tiny_model, tmp_path / "shards", max_steps=2)
    assert len(list((tmp_path / "shards" / "checkpoint-1").glob("model-*.safetensors"))) > 1
    assert_same(
        whole, train("s_trace", tiny_model, tmp_path / "2", str(tmp_path / "shards" / "checkpoint-1"), max_steps=2)
    )

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "tied")
    assert not_loaded(model, ["lm_head.weight"]) == []
    assert not_loaded(AutoModelForCausalLM.from_pretrained(tiny_model), ["lm_head.weight"]) == ["lm_head.weight"]
    tied = dict(method="s_trace", model=str(tmp_path / "tied"), max_steps=2)
    whole = train(folder=tmp_path / "3", **tied)
    assert "lm_head.weight" not in load_file(tmp_path / "3" / "checkpoint-1" / "model.safetensors")
    assert_same(whole, train(folder=tmp_path / "4", resume=str(tmp_path / "3" / "checkpoint-1"), **tied))
