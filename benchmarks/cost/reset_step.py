r"""Measure a whole step of SRPO and of RRPO over GRPO's, generation included, by a recipe of `train.py`.

    python -m benchmarks.cost.reset_step --output benchmarks/cost/reset_step_vllm_h200.json     # one GPU, with vLLM
    python -m benchmarks.cost.reset_step --engine transformers --recipe recipes/smollm2_cpu.yaml --rounds 2 \
        --per_device_train_batch_size 8 --num_generations 4 --max_completion_length 32          # on a CPU

Every trainer is in a process of its own, with an engine of its own. They take turns, a step each, in an order that
rotates; each step is divided by GRPO's of the same round. The learning rate is 0, so that all sample from the same
policy however many steps they have made; every step samples a batch and trains on it once.

Options that are not listed here go to `train.py`.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.measuring import compact_json, median_interval, processor
from benchmarks.common.processes import interrupt_on_signals
from benchmarks.common.relay import Figures, Turns, relay
from benchmarks.common.stored import own_command
from benchmarks.real_model.compare import installed
from benchmarks.real_model.run import use_fast_engine

PHASES = "reset/seconds_"  # how the figures of a rollout's phases begin
EVERY_STEP = ("step_seconds", "generated_tokens")  # lists that have a number for every round
SHARE = 0.05  # of the GPU's memory for the keys and values of each engine


class LoggedTurns(Turns):
    """Send the figures that the trainer has logged of the step too."""

    def figures(self, args, state) -> Figures:
        entries = [entry for entry in state.log_history if entry["step"] == state.global_step and "loss" in entry]
        return super().figures(args, state) | entries[-1] | {"completions": args.generation_batch_size}


def train(engine: str, descriptor: int, options: list[str]) -> None:
    """Run `train.py` with `options`, each step when it is this process's turn."""
    if engine == "vllm":
        use_fast_engine()
    import train  # here, since it imports TRL's trainers, which have to find the engine in its place

    make_trainer = train.make_trainer

    def make_waiting_trainer(*arguments):
        trainer = make_trainer(*arguments)
        trainer.add_callback(LoggedTurns(descriptor))
        return trainer

    train.make_trainer = make_waiting_trainer
    sys.argv = ["train.py", *options]
    train.main()


def train_options(arguments: argparse.Namespace, method: str, folder: Path) -> list[str]:
    """Return the options of `train.py` for a method; the last one of a name counts there."""
    options: dict[str, Any] = {
        "config": arguments.recipe, "method": method, "model_name_or_path": arguments.model,
        "output_dir": folder / method, "max_steps": arguments.rounds + arguments.warmup, "learning_rate": 0.0,
        "gradient_accumulation_steps": 1, "steps_per_generation": 1, "num_iterations": 1,
        "logging_steps": 1, "log_completions": "false", "disable_tqdm": "true",
    }  # fmt: skip
    if arguments.engine == "vllm":
        options |= {"use_vllm": "true", "vllm_mode": "colocate", "vllm_gpu_memory_utilization": SHARE}
        options |= {"vllm_max_model_length": 1024}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))] + arguments.train_options


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the steps of the methods in turns, and return what is to be stored."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        options = {method: train_options(arguments, method, Path(name)) for method in arguments.methods}
        worker = [sys.executable, "-m", "benchmarks.cost.reset_step", "--engine", arguments.engine, "--worker"]
        figures = relay(
            {method: [*worker, *words] for method, words in options.items()},
            arguments.rounds,
            Path(name) / "logs",
            warmup=arguments.warmup,
            seconds=arguments.seconds,
        )
    return {
        "command": own_command("benchmarks.cost.reset_step"),
        "runs": {
            method: shlex.join(["python", "train.py", *words]).replace(name, "FOLDER")
            for method, words in options.items()
        },
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "versions": installed(),
        "completions_per_step": figures["grpo"][0]["completions"],
        "rounds": len(figures["grpo"]),
        "warmup_rounds": arguments.warmup,
        "seconds": round(time.perf_counter() - started),
        "methods": {method: summary(steps, figures["grpo"]) for method, steps in figures.items()},
    }


def summary(steps: list[Figures], baseline: list[Figures]) -> dict[str, Any]:
    """Return what is reported of the steps of one method, beside GRPO's of the same rounds.

    Quartiles are three: the lower one, the median, the upper one.
    """

    def quartiles(values: list[float]) -> list[float]:
        return [round(float(value), 4) for value in np.percentile(values, (25, 50, 75))]

    seconds = [step["seconds"] for step in steps]
    ratios = [step["seconds"] / other["seconds"] for step, other in zip(steps, baseline, strict=True)]
    tokens = [generated_tokens(step) for step in steps]
    token_ratios = [made / generated_tokens(other) for made, other in zip(tokens, baseline, strict=True)]
    phases = [name for name in steps[0] if name.startswith(PHASES)]
    return {
        "step_seconds": [round(value, 4) for value in seconds],
        "quartiles": quartiles(seconds),
        "median_over_grpo": quartiles(ratios)[1],
        "quartiles_over_grpo": quartiles(ratios),
        "interval_over_grpo": median_interval(ratios),
        "generated_tokens": [round(value) for value in tokens],
        "tokens_over_grpo": quartiles(token_ratios),
        "median_phases": {name: quartiles([step[name] for step in steps])[1] for name in phases},
        "peak_gib": round(max(step["peak_bytes"] for step in steps) / 2**30, 3),
    }


def generated_tokens(step: Figures) -> float:
    """Return the tokens that a step has sampled, those of completions that it does not train on included."""
    return step.get("reset/generated_tokens", step["completions/mean_length"] * step["completions"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct", help="folder or name of the model")
    parser.add_argument("--recipe", default="recipes/smollm2_gpu.yaml")
    parser.add_argument("--methods", nargs="+", default=["rrpo", "srpo"], help="of train.py, beside grpo")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--rounds", type=int, default=20, help="steps of every method that count")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those that count")
    parser.add_argument("--seconds", type=float, help="time in all, after which no further round begins")
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--relay", type=int, help=argparse.SUPPRESS)
    arguments, arguments.train_options = parser.parse_known_args()
    if arguments.worker:
        train(arguments.engine, arguments.relay, arguments.train_options)
        return
    arguments.methods = list(dict.fromkeys(["grpo", *arguments.methods]))
    interrupt_on_signals()
    result = compare(arguments)
    for method, found in result["methods"].items():
        print(
            method,
            json.dumps(
                {name: value for name, value in found.items() if not isinstance(value, list) or len(value) == 3}
            ),
        )
    print(f"{result['rounds']} rounds in {result['seconds']} s, start included")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(compact_json(result))


if __name__ == "__main__":
    main()
