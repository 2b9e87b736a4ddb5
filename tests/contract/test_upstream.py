"""Upstream's functions that the trainers lean on are those that were read, and a change to one is reported."""

import json

import pytest
from trl import GRPOTrainer

from scripts.upstream_check import (
    ACCEPTED,
    CHECK,
    HOLDERS,
    ROOT,
    attributes_set_upstream,
    fingerprint,
    installed,
    names_of_trainers,
    report,
    users,
)

# Functions that ours do not name, but that call ours or are reached through an attribute.
INDIRECT = {
    "Accelerator.reduce",
    "GRPOTrainer._maybe_log_save_evaluate",
    "GRPOTrainer._prepare_inputs",
    "GRPOTrainer._run_epoch",
    "GRPOTrainer.compute_loss",
    "GRPOTrainer.prediction_step",
    "GRPOTrainer.training_step",
    "VLLMGeneration.generate",
}


@pytest.fixture(scope="module")
def accepted():
    return json.loads(ACCEPTED.read_text())


def test_upstream_is_what_was_read(accepted):
    found = report(accepted, installed())
    if found:
        pytest.fail(found, pytrace=False)


def test_whatever_is_leaned_on_says_what_to_look_at():
    assert set(CHECK) == set(users()) | INDIRECT


def test_a_changed_function_is_reported_with_its_users_and_what_to_look_at(accepted, monkeypatch):
    def _compute_loss(self, model, inputs, scale=1.0):
        return scale * inputs["advantages"].mean()

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", _compute_loss)
    found = report(accepted, installed())
    assert found.count("===") == 1
    assert "=== GRPOTrainer._compute_loss changed" in found
    assert "used by: credit_trl/base/trainer.py" in found
    assert f"look at: {CHECK['GRPOTrainer._compute_loss']}" in found
    assert f"read:      trl {accepted['versions']['trl']}, transformers" in found


def test_a_function_that_is_gone_is_reported(accepted, monkeypatch):
    monkeypatch.delattr(GRPOTrainer, "_tokenize_prompts")
    assert "=== GRPOTrainer._tokenize_prompts is gone\nused by: credit_trl/" in report(accepted, installed())


def test_the_attributes_that_ours_read_are_set_upstream():
    """An attribute that upstream renames is set by nobody: ours would read what is never written."""
    upstream = attributes_set_upstream()
    leaned_on = {name for file, held in HOLDERS.items() for name in names_of_trainers((ROOT / file).read_text(), held)}
    for name in ("_metrics", "_logs", "_step", "_buffered_inputs", "model", "accelerator", "num_generations"):
        assert name in leaned_on & upstream, name


def test_comments_docstrings_and_types_do_not_change_a_fingerprint():
    def one(self, rows: list) -> int:
        """Count."""
        return len(rows)

    first_print = fingerprint(one)

    def one(self, rows):
        # The same in other words.
        return len(rows)

    assert fingerprint(one) == first_print

    def one(self, rows):
        return len(rows) + 1

    assert fingerprint(one) != first_print
