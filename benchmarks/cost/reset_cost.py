"""Measure what reset groups cost over GRPO at equally many trained completions: tokens, and time by phase.

    python -m benchmarks.cost.reset_cost --output benchmarks/cost/reset_cost_testbed_cpu.json
    python -m benchmarks.cost.reset_cost --model models/SmolLM2-135M-Instruct --turns 3 --completions 16 \\
        --output benchmarks/cost/reset_cost_smollm2_cpu.json
    python -m benchmarks.cost.reset_cost --methods rrpo srpo --turns 6 --steps 3 --before FOLDER \\
        --output benchmarks/cost/reset_phases_testbed_cpu.json     # beside the trainers of another checkout
    .venv-vllm/bin/python -m benchmarks.cost.reset_cost --vllm

The learning rate is 0, so every trainer samples from the same policy, for the same prompts, one optimizer step for each
generation. The trainers take turns, a short run each, in an order that rotates; token and time ratios to `GRPOTrainer`
are taken within a turn over all of its steps but the first, and their median over turns is reported with its quartiles.

A step's seconds are split into those of the sampler's own `generate` (the model's or vLLM's), by phase; the rest of the
rollout, TRL's part in it included; and the update. CPU seconds are what to compare where other work shares the machine.
The ratio "without the rest" is that of a step whose rest of the rollout is as short as GRPO's: what no change to the
code around the sampler can go below.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.common.measuring import QUIET, StepClock, in_turns, prepare, processor, ratio_quartiles
from benchmarks.common.methods import oracle
from benchmarks.common.stored import own_command
from credit_trl import SRPOConfig, SRPOTrainer
from credit_trl.data.loading import load_data
from credit_trl.rewards.answers import task_reward
from credit_trl.testbed import BASE_MODEL, LOCALIZATION_TEMPLATE, answer_reward, make_dataset
from scripts.vllm_on_cpu import environment, use_plain_engine

# Calls of the sampler in a rollout, by their number: GRPO's one, without and with questions to the policy.
CALLS = {1: ("base",), 2: ("base", "continuations"), 3: ("base", "localization", "continuations")}

Seconds = tuple[float, float]  # wall and CPU


class Before:
    """Run methods with the package of another checkout, in a process of its own that measures as this file does."""

    def __init__(self, checkout: Path, arguments: list[str]):
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments, "--serve"],
            env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, method: str) -> dict[str, float]:
        """Return what `Bench.run` returns there."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(method, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


class Bench:
    """Hold a model, its problems and what the trainers are given.

    Args:
        model_path: the testbed's base model or a chat model.
        completions: trained completions a step.
        vllm: sample with vLLM in colocate mode.
    """

    def __init__(self, model_path: Path, completions: int, vllm: bool = False):
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
        self.options: dict[str, Any] = dict(per_device_train_batch_size=completions, num_generations=8)
        self.resets: dict[str, Any] = {}
        self.methods: dict[str, tuple[type[GRPOTrainer], type[GRPOConfig], dict, dict]] = {
            "grpo": (GRPOTrainer, GRPOConfig, dict(loss_type="grpo"), {}),
            "rrpo": (SRPOTrainer, SRPOConfig, dict(localizer="random"), {}),
            "srpo": (SRPOTrainer, SRPOConfig, {}, {}),
        }
        if model_path == BASE_MODEL:
            self.data, self.reward = make_dataset(2000), answer_reward
            self.options |= dict(max_completion_length=48)
            self.resets = dict(localization_template=LOCALIZATION_TEMPLATE, localization_max_tokens=4)
            self.methods["srpo, oracle"] = (SRPOTrainer, SRPOConfig, {}, dict(localizer=oracle))
        else:
            self.data, self.reward = word_problems(), task_reward
            self.options |= dict(max_completion_length=96, temperature=0.7)
            self.resets = dict(step_delimiter="\n", localization_max_tokens=32)
        if vllm:
            self.options |= dict(use_vllm=True, vllm_max_model_length=1024 if model_path != BASE_MODEL else 256)

    def run(self, method: str, steps: int, folder: str) -> dict[str, float]:
        """Return means over all steps but the first: tokens, and wall and CPU seconds of the parts of a step."""
        trainer_class, config_class, options, arguments = self.methods[method]
        clock = StepClock()
        trainer = trainer_class(
            self.model,
            self.reward,
            args=config_class(
                output_dir=folder,
                max_steps=steps + 1,
                learning_rate=0.0,
                use_cpu=not torch.cuda.is_available(),
                **QUIET,
                logging_steps=1,
                **self.options,
                **(self.resets if config_class is SRPOConfig else {}),
                **options,
            ),
            train_dataset=self.data,
            processing_class=self.tokenizer,
            callbacks=[clock],
            **arguments,
        )
        trainer.remove_callback(PrinterCallback)
        rollouts: list[Seconds] = []
        samplings: list[Seconds] = []
        engine: Any = trainer
        engine._generate_and_score_completions = timed(engine._generate_and_score_completions, rollouts)
        sampler: Any = engine.vllm_generation.llm if engine.use_vllm else self.model
        sampler.generate = timed(sampler.generate, samplings)
        try:
            trainer.train()
        finally:
            del sampler.generate
        calls = len(samplings) // len(rollouts)
        logs = [entry for entry in trainer.state.log_history if "loss" in entry][1:]
        figures: dict[str, float] = {}
        for place, clock_name in enumerate(("wall", "cpu")):
            step = sum(seconds[place] for seconds in clock.steps[1:]) / steps
            rollout = sum(seconds[place] for seconds in rollouts[1:]) / steps
            by_phase = {
                phase: sum(seconds[place] for seconds in samplings[calls + number :: calls]) / steps
                for number, phase in enumerate(CALLS[calls])
            }
            sampling = sum(by_phase.values())
            figures |= {clock_name: step, f"{clock_name} sampling": sampling}
            figures |= {f"{clock_name} sampling, {phase}": seconds for phase, seconds in by_phase.items()}
            figures |= {f"{clock_name} rest of the rollout": rollout - sampling, f"{clock_name} update": step - rollout}
        completions = self.options["per_device_train_batch_size"]
        figures["generated tokens"] = sum(
            entry.get("reset/generated_tokens", entry["completions/mean_length"] * completions) for entry in logs
        ) / steps  # fmt: skip
        for name in ("localization_tokens", "trained_tokens", "seeded_fraction", "parse_rate", "corrected_fraction",
                     "base_pass_rate", "suffix_pass_rate"):  # fmt: skip
            values = [entry[f"reset/{name}"] for entry in logs if f"reset/{name}" in entry]
            if values:
                figures[name] = sum(values) / len(values)
        return figures


def word_problems():
    """Make the word problems of `recipes/smollm2_cpu.yaml`."""
    return load_data(
        "reasoning-gym/aiw",
        size=500,
        dataset_kwargs={"max_entities": 3, "task_type_weights": [0.5, 0.5, 0.0]},
        instruction="Reason step by step, one short step a line, and end with the answer.",
        conversational=True,
    )


def timed(function: Callable, calls: list[Seconds]) -> Callable:
    """Wrap `function` so that the wall and CPU seconds of every call are appended to `calls`."""

    @wraps(function)
    def wrapper(*arguments, **keywords):
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*arguments, **keywords)
        calls.append((time.perf_counter() - wall, time.process_time() - cpu))
        return result

    return wrapper


def use_one_engine() -> None:
    """Let all trainers of this process share a vLLM engine, which a process has memory and threads for once."""
    os.environ.update(environment())
    use_plain_engine()
    from trl.generation import vllm_generation

    make, made = vllm_generation.LLM, []

    def shared(**options):
        if not made:
            made.append(make(**options))
        return made[0]

    vllm_generation.LLM = shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BASE_MODEL, help="folder of a chat model; the testbed without it")
    parser.add_argument("--completions", type=int, default=128, help="trained completions a step")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="steps of a run that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vllm", action="store_true", help="sample with vLLM on a CPU, from .venv-vllm")
    parser.add_argument("--methods", nargs="+", help="beside grpo; all without it")
    parser.add_argument("--before", type=Path, help="another checkout, whose trainers take turns with these")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    prepare(arguments.threads)
    if arguments.vllm:
        use_one_engine()
    bench = Bench(arguments.model, arguments.completions, arguments.vllm)
    methods = ["grpo", *(arguments.methods or list(bench.methods)[1:])]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.serve:
            for line in sys.stdin:
                print(json.dumps(bench.run(line.strip(), arguments.steps, folder)), flush=True)
            return
        before = Before(arguments.before, sys.argv[1:]) if arguments.before else None
        if before is not None:
            methods = [name for method in methods for name in (method, f"{method}, before")[: 2 - (method == "grpo")]]

        def run(name: str) -> dict[str, float]:
            method = name.removesuffix(", before")
            return before.run(method) if before and method != name else bench.run(method, arguments.steps, folder)

        runs = in_turns(methods, arguments.turns, run)
        if before is not None:
            before.process.communicate()
    rows = []
    for method, figures in runs.items():
        row: dict[str, Any] = {"method": method}
        for name in ("wall", "cpu", "generated tokens"):
            low, middle, high = ratio_quartiles(name, figures, runs["grpo"])
            row[f"{name} ratio"] = [middle, low, high]
        rest = "cpu rest of the rollout"
        for run, baseline in zip(figures, runs["grpo"], strict=True):
            run["cpu without the rest"] = run["cpu"] - run[rest] + baseline[rest]
            baseline["cpu without the rest"] = baseline["cpu"]
        low, middle, high = ratio_quartiles("cpu without the rest", figures, runs["grpo"])
        row["cpu ratio without the rest"] = [middle, low, high]
        for name in dict.fromkeys(name for run in figures for name in run):
            row[name] = round(median(run[name] for run in figures if name in run), 4)
        rows.append(row)
    for row in rows:
        print(json.dumps(row))
    if arguments.output:
        result = {
            "command": own_command("benchmarks.cost.reset_cost"),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "model": arguments.model.name,
            "completions_per_step": arguments.completions,
            "turns": arguments.turns,
            "steps": arguments.steps,
            "ratios": "to grpo: median, lower and upper quartile over turns",
            "rows": rows,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
