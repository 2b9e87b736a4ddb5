"""Measure how often a model solves the candidate tasks before training, and choose one to train on.

    python -m benchmarks.real_model.choose --model models/SmolLM2-135M-Instruct --output runs/tasks.json

A task is fit if its pass rate is between 0.1 and 0.5: a group of completions then has failures and successes. Of the
fit ones, the task is chosen whose completions most often have several steps (lines).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import datasets

from benchmarks.common.measuring import compact_json
from credit_trl.cli.recipe import read_settings
from credit_trl.data.loading import load_data
from credit_trl.evaluation import evaluate_problems, named_scorer, summarize
from credit_trl.generation.engines import Engine, Sampling, TransformersEngine, VLLMEngine

from .compare import TASKS
from .run import engine_options

FIT = (0.1, 0.5)
SEED = 100_000  # far from the seeds of the problems of training and of its held-out problems


def measure(engine: Engine, task: str, recipe: dict[str, Any], problems: int, samples: int) -> dict[str, Any]:
    """Return the pass rate of a task with its 95% interval, sampled as `recipe` samples, and what else to know of it.

    `several_steps` is the share of completions with at least two lines, `cut_short` of those that reached the limit in
    tokens, and `distinct` of problems that are not the same as an earlier one, among 1,000.
    """
    options = {"dataset_kwargs": TASKS[task], "seed": SEED, "instruction": recipe["instruction"]}
    options["conversational"] = engine.tokenizer.chat_template is not None
    data = load_data(f"reasoning-gym/{task}", split="test", size=problems, **options)
    sampling = Sampling(temperature=recipe["temperature"], max_completion_length=recipe["max_completion_length"])
    rows = evaluate_problems(
        data, named_scorer("task"), engine, num_samples=samples, sampling=sampling, progress=task
    )  # fmt: skip
    summary = summarize(rows, samples, with_votes=False)
    lines = [sum(bool(line.strip()) for line in row["completion"].splitlines()) for row in rows]
    many = load_data(f"reasoning-gym/{task}", size=1000, **options)["prompt"]
    return {
        "task": task,
        "pass_rate": [round(value, 4) for value in summary["metrics"]["pass@1"]],
        "several_steps": round(sum(count > 1 for count in lines) / len(lines), 4),
        "cut_short": round(summary["truncated"], 4),
        "distinct": len({json.dumps(prompt) for prompt in many}) / 1000,
    }


def choose(measured: list[dict[str, Any]]) -> str | None:
    """Return the fit task whose completions most often have several steps; None if no task is fit."""
    fit = [row for row in measured if FIT[0] <= row["pass_rate"][0] <= FIT[1]]
    return max(fit, key=lambda row: row["several_steps"])["task"] if fit else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--recipe", default="recipes/smollm2_gpu.yaml", help="gives the instruction and the sampling")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--problems", type=int, default=64, help="of each task")
    parser.add_argument("--samples", type=int, default=4, help="completions of each problem")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    if arguments.engine == "vllm":
        options = {"dtype": "bfloat16", "max_model_len": 1024, **engine_options()}
        engine: Engine = VLLMEngine(arguments.model, **options)
    else:
        engine = TransformersEngine.load(arguments.model)
    measured = []
    print("| task | pass rate | several steps | cut short | distinct problems |\n|---|---|---|---|---|", flush=True)
    for task in arguments.tasks:
        row = measure(engine, task, read_settings(arguments.recipe), arguments.problems, arguments.samples)
        measured.append(row)
        rate = "{:.3f} ({:.3f} to {:.3f})".format(*row["pass_rate"])
        shares = " | ".join(f"{row[name]:.0%}" for name in ("several_steps", "cut_short", "distinct"))
        print(f"| {task} | {rate} | {shares} |", flush=True)
    chosen = choose(measured)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(compact_json({"chosen": chosen, "tasks": measured}))
    if chosen is None:
        parser.exit(1, "no task has a pass rate between {} and {}\n".format(*FIT))
    print(f"chosen: {chosen}")


if __name__ == "__main__":
    main()
