"""What is started for a comparison of a pretrained model's runs, what becomes of it, and what is read from it."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from trl.generation import vllm_generation

from benchmarks.real_model import choose, compare, run
from benchmarks.real_model.summary import rate_interval, read_log, read_runs, summarize, table
from credit_trl.cli.arguments import parse
from credit_trl.data.loading import load_data
from credit_trl.generation.engines import Completion
from credit_trl.testbed import BASE_MODEL
from tests.helpers.launching import ROOT

STOPS = """
import os, signal, sys, time
print("port", os.environ["MASTER_PORT"])
def stop(*_):
    print("pass rate after training: 0.500 (8 held-out problems x 1 completions, task_reward = 1)")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("pass rate before training: 0.250 (8 held-out problems x 1 completions, task_reward = 1)")
for reward in ("0.25", "0.75"):
    print({"loss": "0.1", "reward": reward, "reward_std": "0.5"}, flush=True)
time.sleep(60)
"""
HANGS = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + STOPS.partition("TERM, stop)")[2]
DIES = "print({'reward': '0.5'}); raise MemoryError('the GPU is full')"


def arguments(**changes) -> argparse.Namespace:
    values = dict(
        model=str(BASE_MODEL),
        methods=["grpo", "s_trace --trace_lambda 0.9", "grpo_lambda"],
        seeds=[0, 1],
        recipe=str(ROOT / "recipes" / "smollm2_cpu.yaml"),
        engine="transformers",
        eval_size=8,
        folder=ROOT / "runs",
        train_options=[],
    )
    return argparse.Namespace(**values | changes)


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
    low, high = row["last_quarter_interval"]
    assert 0.5 <= low < (1.1 + 1.2 + 0.5 + 0.5) / 4 < high <= 1.2


def test_a_folder_of_another_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="testbed is not called real-<method>-<seed>"):
        read_runs([tmp_path / "testbed"])


def test_a_log_is_read_between_bars_and_other_metrics(tmp_path):
    path = tmp_path / "train.log"
    path.write_text(
        "pass rate:  50%|#####     \r                \rpass rate before training: 0.125 (8 held-out problems x 1)\n"
        "{'loss': '0.1', 'rewards/task_reward/mean': '0.9', 'reward': '0.1797', 'reward_std': '0.3'}\n"
        "{'loss': '0.1', 'eval_reward': '0.7'}\n"
        "pass rate:  50%|#####     \r{'reward': '0.2'}\nthe last\n"
    )
    assert read_log(path) == ([0.1797, 0.2], {"before": 0.125}, "the last")


def test_wilson_interval():
    assert rate_interval(0.5, 100) == [0.4038, 0.5962]
    assert rate_interval(0.0, 16) == pytest.approx([0, 1.96**2 / (16 + 1.96**2)], abs=1e-4)


def test_the_rest_is_reported_when_a_run_dies_and_another_does_not_stop(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(compare, "POLL", 0.1)
    scripts = {"real-grpo-0": STOPS, "real-grpo-1": DIES, "real-grpo-2": STOPS, "real-s_trace-0": HANGS}
    commands = {name: [sys.executable, "-c", script] for name, script in scripts.items()}
    output = tmp_path / "compared.json"
    found = compare.compare(commands, tmp_path / "runs", output, (1.5, 2.5), 8, {"command": "compare"})
    assert found == json.loads(output.read_text()) and found["command"] == "compare"
    stopped, hung = found["results"]
    assert (stopped["runs"], hung["runs"]) == (["real-grpo-0", "real-grpo-2"], ["real-s_trace-0"])
    assert stopped["rewards"] == 2 * hung["rewards"] == 2 * [[0.25, 0.75]]
    assert [rate[0] for rate in stopped["pass_rate_before"]] == [0.25, 0.25]
    assert [rate[0] for rate in stopped["pass_rate_after"]] == [0.5, 0.5]
    assert hung["pass_rate_after"] == [None]
    died = {"run": "real-grpo-1", "exit_status": 1, "batches": 1, "last_line": "MemoryError: the GPU is full"}
    assert found["left_out"] == [died]
    assert capfd.readouterr().out.count("real-grpo-1 died with exit status 1: MemoryError: the GPU is full") == 1
    logs = [(tmp_path / "runs" / name / "train.log").read_text() for name in ("real-grpo-0", "real-grpo-2")]
    assert len({log.splitlines()[0] for log in logs}) == 2  # a port for each
    assert "| s_trace | 1 | 2 | 0.250 (0.250 to 0.250) | 0.750 (0.750 to 0.750) | 0.250 | none |" in table(
        [stopped, hung]
    )


def test_no_run_is_left_behind_by_an_error(tmp_path, monkeypatch):
    """A run cannot be started, or the results cannot be written: the runs that go on would never end."""
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(compare.subprocess, "Popen", Popen)
    hangs, missing = [sys.executable, "-c", HANGS], [str(tmp_path / "missing")]
    (tmp_path / "file").touch()
    for commands, folder in (({"a": hangs, "b": missing}, "results"), ({"a": hangs}, "file")):
        with pytest.raises((FileNotFoundError, FileExistsError)):
            compare.compare(commands, tmp_path / "runs", tmp_path / folder / "c.json", (30, 60), 8, {})
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def test_too_little_time_is_refused_before_a_run_starts(tmp_path, monkeypatch):
    options = ["--model", "m", "--task", "aiw", "--minutes", "1", "--output", str(tmp_path / "compared.json")]
    monkeypatch.setattr(sys, "argv", ["compare", *options])
    monkeypatch.setattr(compare, "interrupt_on_signals", lambda: None)
    with pytest.raises(SystemExit, match="60 s are left, too few for --ending_seconds: raise --minutes"):
        compare.main()


def test_the_engine_takes_the_share_of_memory_that_the_trainer_gives_it(monkeypatch):
    """Also where `--vllm_gpu_memory_utilization` stands twice: the last one counts, as for every option."""
    monkeypatch.setattr(vllm_generation, "LLM", dict, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 1000))
    made = []

    def train(path, run_name):
        made.append(vllm_generation.LLM(model="m", gpu_memory_utilization=0.25))

    monkeypatch.setattr(run.runpy, "run_path", train)
    monkeypatch.setattr(sys, "argv", ["run"])
    run.main()
    assert made == [dict(model="m", gpu_memory_utilization=0.25, kv_cache_memory_bytes=250) | run.ON_GPU]


def test_each_run_is_a_command_of_train_py():
    for seed in (0, 1):
        for spec in arguments().methods:
            words = compare.train_command(arguments(), ["--dataset_name", "testbed"], spec, seed)
            run_args, _, training_args = parse([*words[2:], "--dataset_kwargs", "{}"], ROOT / "none.yaml")
            assert (run_args.method, training_args.seed) == (spec.split()[0], seed)
            assert getattr(training_args, "trace_lambda", None) == {"s_trace": 0.9, "grpo_lambda": 0.99}.get(
                run_args.method
            )
            assert (run_args.dataset_name, run_args.eval_samples) == ("testbed", 1)
            assert training_args.generation_batch_size == 128
            assert training_args.num_iterations == 4 and training_args.gradient_accumulation_steps == 4
            assert training_args.output_dir.endswith(f"runs/real-{run_args.method}-{seed}")
    words = compare.train_command(arguments(train_options=["--num_iterations", "2"]), [], "grpo", 0)
    assert parse(words[2:], ROOT / "none.yaml")[2].num_iterations == 2
    words = compare.train_command(arguments(engine="vllm"), [], "grpo", 0)
    assert words[1:3] == ["-m", "benchmarks.real_model.run"]
    share = float(words[words.index("--vllm_gpu_memory_utilization") + 1])
    assert 6 * share == pytest.approx(0.2, abs=1e-3)


def test_the_task_that_was_chosen_is_trained_on(tmp_path, monkeypatch):
    def run(command):
        assert command[1:3] == ["-m", "benchmarks.real_model.choose"]
        path = Path(command[command.index("--output") + 1])
        path.write_text(json.dumps({"chosen": "chain_sum", "tasks": []}))
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(compare.subprocess, "run", run)
    status = 0
    options = dict(folder=tmp_path, problems=4)
    task = compare.chosen_task(arguments(task=None, **options))
    assert task[:3] == ["--dataset_name", "reasoning-gym/chain_sum", "--dataset_kwargs"]
    assert json.loads(task[3]) == compare.TASKS["chain_sum"]
    assert compare.chosen_task(arguments(task="aiw", **options))[1] == "reasoning-gym/aiw"
    assert compare.chosen_task(arguments(task="recipe", **options)) == []
    status = 1
    with pytest.raises(SystemExit, match="no task was chosen: name one with --task"):
        compare.chosen_task(arguments(task=None, **options))


def test_the_task_is_fit_and_has_steps():
    def row(task, rate, steps):
        return {"task": task, "pass_rate": [rate, 0, 1], "several_steps": steps}

    fit = [row("short", 0.3, 0.4), row("long", 0.12, 0.9)]
    assert choose.choose([row("hard", 0.05, 1.0), *fit, row("easy", 0.7, 1.0)]) == "long"
    assert choose.choose([row("hard", 0.05, 1.0)]) is None


class Letters:
    """A tokenizer whose tokens are letters."""

    chat_template = None

    def __call__(self, texts):
        return {"input_ids": [list(map(ord, text)) for text in texts]}

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(map(chr, row)) for row in rows]


class Solving:
    """An engine that writes the right answer in two lines in every second completion."""

    def __init__(self, solutions):
        self.tokenizer = Letters()
        self.solutions = solutions

    def sample(self, prompt_ids, num_samples, sampling, seed):
        assert num_samples == 2 and (sampling.temperature, sampling.max_completion_length) == (0.7, 96)
        solutions = [self.solutions["".join(map(chr, ids))] for ids in prompt_ids]
        texts = [("A step.\n" + solution, "no idea") for solution in solutions]
        return [[Completion(list(map(ord, text)), truncated=False) for text in pair] for pair in texts]


@pytest.mark.parametrize("task", compare.TASKS)
def test_a_candidate_is_measured(task):
    options = dict(instruction="Reason.", conversational=False, dataset_kwargs=compare.TASKS[task])
    problems = load_data(f"reasoning-gym/{task}", split="test", size=4, seed=choose.SEED, **options)
    engine = Solving({row["prompt"]: row["solution"] for row in problems})
    recipe = {"instruction": "Reason.", "temperature": 0.7, "max_completion_length": 96}
    row = choose.measure(engine, task, recipe, problems=4, samples=2)
    assert (row["pass_rate"][0], row["several_steps"], row["cut_short"]) == (0.5, 0.5, 0.0)
    assert 0.05 < row["distinct"] <= 1


@pytest.mark.thorough
def test_a_comparison_on_the_testbed_that_is_interrupted(tmp_path):
    """Two methods train until the comparison is told to stop; then they measure once more, and are reported."""
    output = tmp_path / "compared.json"
    command = [sys.executable, "-m", "benchmarks.real_model.compare", "--model", str(BASE_MODEL), "--task", "recipe"]
    command += ["--methods", "grpo", "s_trace --trace_lambda 0.9", "--seeds", "0", "--engine", "transformers"]
    command += ["--recipe", "recipes/testbed.yaml", "--eval_size", "16", "--ending_seconds", "240", "--minutes", "9"]
    command += ["--folder", str(tmp_path / "runs"), "--output", str(output)]
    command += ["--gradient_accumulation_steps", "1", "--steps_per_generation", "1", "--use_cpu", "true"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        while process.poll() is None and not (output.exists() and len(json.loads(output.read_text())["results"]) == 2):
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0, (tmp_path / "log").read_text()
    found = json.loads(output.read_text())
    assert found["left_out"] == [] and output.with_suffix(".png").exists()
    assert [row["method"] for row in found["results"]] == ["grpo", "s_trace"]
    for row in found["results"]:
        (before,), (after,) = row["pass_rate_before"], row["pass_rate_after"]
        assert before[1] < before[0] < before[2] and after[1] < after[0] < after[2]
    # What the log says to four digits is what the run saved.
    state = json.loads((tmp_path / "runs" / "real-grpo-0" / "trainer_state.json").read_text())["log_history"]
    saved = [entry["reward"] for entry in state if entry.get("reward") is not None]
    assert found["results"][0]["rewards"] == [pytest.approx(saved, abs=1e-3)]
