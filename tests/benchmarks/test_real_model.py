"""What is read from the runs of a pretrained model."""

import json

import pytest

from benchmarks.real_model.summary import read_runs, summarize


def test_the_first_and_the_last_quarter_of_every_seed_count(tmp_path):
    for seed, gain in enumerate((0.1, 0.0)):
        log = [{"step": step, "reward": 0.5 + gain * (step - 1)} for step in range(1, 9)]
        log.insert(3, {"step": 3, "loss": 0.0})  # a further optimizer step on the same completions
        folder = tmp_path / f"real-srpo-{seed}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    (row,) = summarize(read_runs(sorted(tmp_path.iterdir())))
    assert (row["method"], row["batches"], len(row["rewards"])) == ("srpo", 8, 2)
    assert row["first_quarter"] == pytest.approx([(0.5 + 0.6) / 2, 0.5])
    assert row["last_quarter"] == pytest.approx([(1.1 + 1.2) / 2, 0.5])


def test_a_folder_of_another_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="testbed is not called real-<method>-<seed>"):
        read_runs([tmp_path / "testbed"])
