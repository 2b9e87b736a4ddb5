"""Scripts of strangers run with one import changed: each entry of corpus.yaml trains, or is refused by name."""

import math
import sys
import types

import pytest
import torch
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from credit_trl import GRPOLambdaTrainer, SRPOConfig, SRPOTrainer, STraceTrainer
from tests.helpers import corpus
from tests.helpers.corpus import (
    CORPUS,
    NAMES,
    PAGE,
    REFUSALS,
    TRACES,
    covering,
    on_cpu,
    passed,
    refusals,
    with_table,
)
from tests.helpers.vision import load_vision_model, save_vision_model

TRAINERS = {"S-trace": STraceTrainer, "GRPO-lambda": GRPOLambdaTrainer, "SRPO": SRPOTrainer, "RRPO": SRPOTrainer}
ENTRIES = dict(zip(NAMES, CORPUS, strict=True))


@pytest.fixture(scope="module")
def models(tiny_model, tmp_path_factory):
    """The folders of a model that reads and of one that sees."""
    return tiny_model, save_vision_model(str(tmp_path_factory.mktemp("models") / "vision"))


def build(name, entry, models, folder):
    """Build the trainer as the script would, `GRPOTrainer` replaced by ours."""
    given, (model, vision_model) = passed(entry), models
    args = (corpus.ScriptConfig if given.get("config_subclass") else GRPOConfig)(str(folder), **on_cpu(entry))
    if name == "RRPO":
        args = SRPOConfig.from_grpo_config(args)
        args.localizer = "random"
    options: dict = dict(processing_class=corpus.make_tokenizer(model, entry))
    if given.get("peft"):
        options["peft_config"] = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    if given["callbacks"]:
        options["callbacks"] = [corpus.Noticing()]
    if given.get("tools"):
        options["tools"] = [corpus.look]
    if given.get("environment_factory"):
        options["environment_factory"] = corpus.Environment
    if given.get("rollout_func"):
        options["rollout_func"] = corpus.rollout
    if given.get("images"):
        model, options["processing_class"] = load_vision_model(vision_model)
    rewards = [corpus.make_reward(index, given["columns"]) for index in range(given["rewards"])]
    return TRAINERS[name](model, rewards, args=args, train_dataset=corpus.make_data(entry), **options)


def check(name, entry, models, folder):
    reasons = refusals(name, entry)
    if reasons:
        with pytest.raises(ValueError, match=rf"^{reasons[0].starts}\b"):
            build(name, entry, models, folder)
        return
    trainer = build(name, entry, models, folder)
    trainer.train()
    log = trainer.state.log_history[0]
    assert trainer.state.global_step == 1
    # TRL logs None for a clip ratio of no tokens, which is what `mask_truncated_completions` may leave.
    assert all(math.isfinite(value) for value in log.values() if value is not None), log
    assert any(metric.startswith("trace/" if name in TRACES else "reset/") for metric in log)
    assert all(bool(torch.isfinite(value).all()) for value in trainer.model.parameters())
    nothing = log["frac_reward_zero_std"] == 1 or log.get("clip_ratio/low_min", 0) is None
    assert (log["grad_norm"] > 0) != nothing


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["S-trace", "SRPO"])
@pytest.mark.parametrize("entry", covering())
def test_every_option_of_the_scripts_trains_a_step(models, tmp_path, name, entry):
    check(name, ENTRIES[entry], models, tmp_path)


@pytest.mark.parametrize("name", TRAINERS)
def test_every_config_is_taken(tmp_path, name):
    for entry in CORPUS:
        TRAINERS[name].config_class.sharing(GRPOConfig(str(tmp_path), **on_cpu(entry))).check_options()


def test_the_page_shows_the_corpus_as_it_is():
    assert PAGE.read_text() == with_table(PAGE.read_text()), "run python -m tests.helpers.corpus"


def test_every_refusal_is_of_something():
    for kind in REFUSALS:
        assert any(kind in refusals(name, entry) for name in kind.trainers for entry in CORPUS), kind.reason


@pytest.mark.parametrize("name", ["S-trace", "SRPO"])
def test_a_loss_like_unsloths_ends_in_an_error_that_names_it(models, tmp_path, monkeypatch, name):
    """As `unsloth` 2026.10.9 does it: `compute_loss` asks for log-probabilities, gets none, and computes its own."""
    original = GRPOTrainer._get_per_token_logps_and_entropies

    def logps(self, model, ids, mask, length, batch_size=None, compute_entropy=False, compute_efficient=False, **more):
        if compute_efficient:
            return None, None
        return original(self, model, ids, mask, length, batch_size, compute_entropy, **more)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids, mask = (
            torch.cat([inputs[f"{part}_{name}"] for part in ("prompt", "completion")], 1) for name in ("ids", "mask")
        )
        length = inputs["completion_ids"].shape[1]
        assert self._get_per_token_logps_and_entropies(model, ids, mask, length, None, False, True)[0] is None
        own, _, _ = original(self, model, ids, mask, length)
        return -(own * inputs["advantages"].unsqueeze(1) * inputs["completion_mask"]).mean()

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", logps)
    monkeypatch.setattr(GRPOTrainer, "compute_loss", compute_loss)
    monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    trainer = build(name, ENTRIES["trl-quickstart"], models, tmp_path)
    with pytest.raises(RuntimeError, match="Unsloth is imported"):
        trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("entry", NAMES)
def test_every_script_trains_a_step(models, tmp_path, name, entry):
    check(name, ENTRIES[entry], models, tmp_path)
