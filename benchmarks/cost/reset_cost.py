"""Measure what reset groups cost over GRPO at equally many trained completions: tokens, and time by phase.

    python -m benchmarks.cost.reset_cost --output benchmarks/cost/reset_cost_testbed_cpu.json
    python -m benchmarks.cost.reset_cost --model models/SmolLM2-135M-Instruct --turns 3 --completions 16 \\
        --output benchmarks/cost/reset_cost_smollm2_cpu.json

The learning rate is 0, so every trainer samples from the same policy, for the same prompts, one optimizer step for each
generation. The trainers take turns, a short run each, in an order that rotates; token and time ratios to `GRPOTrainer`
are taken within a turn over all of its steps but the first, and their median over turns is reported with its quartiles.
"""

import argparse
import json
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
from credit_trl import SRPOConfig, SRPOTrainer
from credit_trl.data.loading import load_data
from credit_trl.rewards.answers import task_reward
from credit_trl.testbed import BASE_MODEL, LOCALIZATION_TEMPLATE, answer_reward, make_dataset

PHASES = ("base", "seeds", "localization", "suffixes")


class Bench:
    """Hold a model, its problems and what the trainers are given.

    Args:
        model_path: the testbed's base model or a chat model.
        completions: trained completions a step.
    """

    def __init__(self, model_path: Path, completions: int):
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

    def run(self, method: str, steps: int, folder: str) -> dict[str, float]:
        """Return means over all steps but the first: tokens, wall and CPU seconds, and the seconds of every phase."""
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
        calls: dict[str, list[float]] = {"sampling": [], "generation": []}
        engine: Any = trainer
        engine._generate_single_turn = timed(engine._generate_single_turn, calls["sampling"])
        engine._generate_and_score_completions = timed(engine._generate_and_score_completions, calls["generation"])
        trainer.train()
        per_step = len(calls["sampling"]) // len(calls["generation"])
        logs = [entry for entry in trainer.state.log_history if "loss" in entry][1:]
        wall, cpu = (sum(column) / steps for column in zip(*clock.steps[1:], strict=True))
        sampling = sum(calls["sampling"][per_step:]) / steps
        generation = sum(calls["generation"][1:]) / steps
        completions = self.options["per_device_train_batch_size"]
        figures = {
            "wall": wall,
            "cpu": cpu,
            "sampling": sampling,
            "rest of the rollout": generation - sampling,
            "update": wall - generation,
            "generated tokens": sum(
                entry.get("reset/generated_tokens", entry["completions/mean_length"] * completions) for entry in logs
            ) / steps,
        }  # fmt: skip
        for name in ("localization_tokens", "trained_tokens", "seeded_fraction", "parse_rate", "corrected_fraction",
                     "base_pass_rate", "suffix_pass_rate", *(f"seconds_{phase}" for phase in PHASES)):  # fmt: skip
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


def timed(function: Callable, seconds: list[float]) -> Callable:
    """Wrap `function` so that the seconds of every call are appended to `seconds`."""

    @wraps(function)
    def wrapper(*arguments, **keywords):
        start = time.perf_counter()
        result = function(*arguments, **keywords)
        seconds.append(time.perf_counter() - start)
        return result

    return wrapper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BASE_MODEL, help="folder of a chat model; the testbed without it")
    parser.add_argument("--completions", type=int, default=128, help="trained completions a step")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="steps of a run that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    prepare(arguments.threads)
    bench = Bench(arguments.model, arguments.completions)
    with tempfile.TemporaryDirectory() as folder:
        runs = in_turns(bench.methods, arguments.turns, lambda method: bench.run(method, arguments.steps, folder))
    rows = []
    for method, figures in runs.items():
        row: dict[str, Any] = {"method": method}
        for name in ("wall", "cpu", "generated tokens"):
            low, middle, high = ratio_quartiles(name, figures, runs["grpo"])
            row[f"{name} ratio"] = [middle, low, high]
        for name in dict.fromkeys(name for run in figures for name in run):
            row[name] = round(median(run[name] for run in figures if name in run), 4)
        rows.append(row)
    for row in rows:
        print(json.dumps(row))
    if arguments.output:
        result = {
            "command": "python " + " ".join(["-m", "benchmarks.cost.reset_cost", *sys.argv[1:]]),
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
