"""What the measurements of an update and of a step with resets report, and that their commands run on a CPU."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cost import reset_step, update_step
from credit_trl.cli.arguments import parse
from credit_trl.testbed import BASE_MODEL
from scripts.docs_tables import cost
from tests.helpers.launching import ROOT

TESTBED = ROOT / "recipes" / "testbed.yaml"


def steps(*seconds: float, **figures: float) -> list[dict]:
    return [{"seconds": value, "cpu_seconds": value / 2, "peak_bytes": 2**30, **figures} for value in seconds]


def test_an_update_is_divided_by_grpos_of_the_same_round_and_start():
    grpo = [steps(1.0, 2.0, 4.0), steps(3.0, 2.0, 4.0), steps(10.0, 10.0), steps(30.0, 30.0)]
    of_grpo, made = update_step.rows({"grpo": grpo, "p_trace": [steps(3.0, 3.0, 8.0), steps(20.0, 22.0)]}, 2)
    assert made["process_ratios"] == [1.5, 1.05] and made["update_ratio"] == 1.275
    assert (made["update_seconds"], made["peak_gib"]) == (8.0, 1.0) and made["seconds_by_round"][1] == [20.0, 22.0]
    assert of_grpo["process_ratios"] == [1.0, 1.0, 0.5, 1.5] and of_grpo["update_ratio"] == 1.0


def test_a_step_with_resets_is_beside_grpos_of_the_same_round():
    common = {"completions": 8, "completions/mean_length": 10.0}
    grpo = steps(1.0, 2.0, 4.0, **common)
    srpo = steps(2.0, 3.0, 6.0, **common, **{"reset/generated_tokens": 120.0, "reset/seconds_base": 0.5})
    found = reset_step.summary(srpo, grpo)
    assert found["quartiles"] == [2.5, 3.0, 4.5] and found["median_over_grpo"] == 1.5
    assert found["quartiles_over_grpo"] == [1.5, 1.5, 1.75]
    assert found["generated_tokens"] == [120, 120, 120] and found["tokens_over_grpo"] == [1.5, 1.5, 1.5]
    assert found["median_phases"] == {"reset/seconds_base": 0.5}
    assert reset_step.summary(grpo, grpo)["median_phases"] == {}


def test_the_table_of_steps_reads_ratios_within_a_round(monkeypatch):
    found = reset_step.summary(
        *(steps(*seconds, completions=1, **{"completions/mean_length": 1.0}) for seconds in ((2.0, 3.0), (1.0, 2.0)))
    )
    monkeypatch.setattr(cost, "stored", lambda _: {"methods": {"srpo": found}})
    assert "| SRPO | 2.50 (2.25 to 2.75) | 1.75 (1.62 to 1.88) |" in cost.resets_vllm()


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_every_step_samples_a_batch_from_the_same_policy(engine):
    arguments = argparse.Namespace(
        recipe=str(ROOT / "recipes" / "smollm2_gpu.yaml"), model="model", rounds=20, warmup=2, engine=engine,
        train_options=["--bf16", "false", "--max_completion_length", "32"],
    )  # fmt: skip
    for method in ("grpo", "rrpo", "srpo"):
        run_args, _, training_args = parse(reset_step.train_options(arguments, method, Path("runs")), TESTBED)
        assert run_args.method == method and training_args.max_steps == 22
        assert training_args.learning_rate == 0 and training_args.num_iterations == 1
        assert training_args.generation_batch_size == 128 and training_args.gradient_accumulation_steps == 1
        assert training_args.max_completion_length == 32
        assert training_args.use_vllm == (engine == "vllm")


def command(module: str, *options: str, output: Path) -> dict:
    words = [sys.executable, "-m", f"benchmarks.cost.{module}", *options, "--output", str(output)]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(output.read_text())


@pytest.mark.thorough
def test_updates_take_turns(tmp_path):
    options = ("--model", "tiny", "--completions", "8", "--length", "16", "--rounds", "2", "--warmup", "1")
    options += ("--baselines", "1", "--starts", "2")
    found = command("update_step", *options, output=tmp_path / "updates.json")
    assert [row["method"] for row in found["rows"]] == list(update_step.COMPARED)
    assert found["starts"] == 2
    assert all([len(of_one) for of_one in row["seconds_by_round"]] == [2, 2] for row in found["rows"])


@pytest.mark.thorough
def test_steps_with_resets_take_turns(tmp_path):
    options = ("--engine", "transformers", "--recipe", str(TESTBED), "--model", str(BASE_MODEL))
    small = ("--rounds", "2", "--warmup", "1", "--per_device_train_batch_size", "16", "--eval_pass_rate", "false")
    found = command("reset_step", *options, *small, output=tmp_path / "steps.json")
    assert list(found["methods"]) == ["grpo", "rrpo", "srpo"] and found["completions_per_step"] == 16
    assert "reset/seconds_localization" in found["methods"]["srpo"]["median_phases"]
    assert all(len(method["step_seconds"]) == 2 for method in found["methods"].values())
