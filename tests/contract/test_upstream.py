"""Upstream's functions that the trainers lean on are those that were read, and a change to one is reported readably."""

import json

import pytest
from trl import GRPOTrainer

from scripts import upstream_snapshot
from scripts.upstream_snapshot import CHECK, SNAPSHOT, installed, outline, report, uses


@pytest.fixture(scope="module")
def snapshot():
    return json.loads(SNAPSHOT.read_text())


def test_upstream_is_what_was_read(snapshot):
    found = report(snapshot, installed())
    if found:
        pytest.fail(found, pytrace=False)


def test_whatever_is_leaned_on_says_what_to_check():
    functions, attributes = uses()
    assert set(CHECK) == set(functions)
    names = ("base/trainer", "base/resume", "traces/trainer", "resets/trainer", "resets/rollout")
    base, resumable, trace, reset, rollout = (f"credit_trl/{name}.py" for name in names)
    pictures, pass_at_k = "credit_trl/visualization/callback.py", "credit_trl/evaluation/callback.py"
    assert functions["GRPOTrainer._compute_loss"] == [trace, pictures]  # overridden, and replaced by its name
    assert functions["GRPOTrainer._generate_single_turn"] == [base, reset, pass_at_k]  # called
    assert functions["accelerate.utils.gather_object"] == [rollout, pass_at_k]  # imported
    assert attributes["_metrics"] == [resumable, trace, reset]
    assert attributes["_step"] == [resumable, rollout]


def test_a_loss_that_reads_the_advantages_first_is_reported(snapshot, monkeypatch):
    def _compute_loss(self, model, inputs, scale=1.0):
        advantages = inputs["advantages"]
        logps, _, _ = self._get_per_token_logps_and_entropies(model, inputs, compute_entropy=True)
        return scale * (advantages * logps).mean()

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", _compute_loss)
    found = report(snapshot, installed())
    assert found.count("===") == 1
    lines = found.splitlines()
    assert "=== GRPOTrainer._compute_loss" in lines
    assert "used by: credit_trl/traces/trainer.py, credit_trl/visualization/callback.py" in lines
    assert f"check:   {CHECK['GRPOTrainer._compute_loss']}" in lines
    assert "-(self, model, inputs)" in lines and "+(self, model, inputs, scale=1.0)" in lines
    for sign, order in (("-", ["forward", "advantages"]), ("+", ["advantages", "forward"])):
        side = [line[1:] for line in lines if line.startswith((sign, " "))]
        reads = side.index("reads inputs['advantages']")
        forward = next(i for i, line in enumerate(side) if line.startswith("self._get_per_token_logps_and_entropies("))
        assert order == (["advantages", "forward"] if reads < forward else ["forward", "advantages"])
    assert f"snapshot:  trl {snapshot['versions']['trl']}, transformers" in found


def test_what_is_gone_is_reported_with_the_files_that_miss_it(snapshot, monkeypatch):
    monkeypatch.delattr(GRPOTrainer, "_tokenize_prompts")
    found = report(snapshot, installed())
    users = "credit_trl/resets/trainer.py, credit_trl/evaluation/callback.py"
    assert f"=== GRPOTrainer._tokenize_prompts\nis gone upstream\nused by: {users}\n" in found


def test_an_attribute_that_nothing_sets_any_more_is_reported(snapshot, monkeypatch):
    def training_step(self, model, inputs, num_items_in_batch):
        return super().training_step(model, inputs, num_items_in_batch)

    monkeypatch.setattr(GRPOTrainer, "training_step", training_step)
    found = report(snapshot, installed())
    assert (
        "=== the trainer's attribute _step\nused by: credit_trl/base/resume.py, credit_trl/resets/rollout.py\n" in found
    )
    assert "-set by GRPOTrainer.training_step" in found.splitlines()


def test_a_new_use_of_ours_asks_for_a_new_snapshot(snapshot, monkeypatch):
    known = {**upstream_snapshot.TRAINERS, "credit_trl/generation/engines.py": ("tokenizer",)}
    monkeypatch.setattr(upstream_snapshot, "TRAINERS", known)
    found = report(snapshot, installed())
    assert "=== trl.data_utils.apply_chat_template\nis used since the snapshot was made\n" in found


def first(self, rows):
    self.seen = rows["a"]
    if self.mode == "train":
        self.other(len(rows) + 1)
    return self.seen


def rewritten(self, rows):
    """The same in other words."""
    taken = rows["a"]
    self.seen = taken  # under a name
    if self.mode == "train":
        self.other(2 * len(rows))
    return self.seen


def reordered(self, rows):
    if self.mode == "train":
        self.other(len(rows) + 1)
    self.seen = rows["a"]
    return self.seen


def otherwise(self, rows):
    self.seen = rows["a"]
    if self.mode == "eval":
        self.other(len(rows) + 1)
    return self.seen


def test_an_outline_holds_the_order_and_the_conditions_but_no_arithmetic():
    expected = [
        "(self, rows)",
        "reads rows['a']",
        "SETS self.seen",
        "if self.mode 'train':",
        "  self.other(_)",
        "reads self.seen",
        "return",
    ]
    seen = frozenset({"seen"})
    assert outline(first, seen) == outline(rewritten, seen) == expected
    assert outline(reordered, seen) != expected and sorted(outline(reordered, seen)) == sorted(expected)
    assert outline(otherwise, seen) == [line.replace("train", "eval") for line in expected]
    assert outline(first, seen, attributes_only=True) == ["(self, rows)", "SETS self.seen"]
