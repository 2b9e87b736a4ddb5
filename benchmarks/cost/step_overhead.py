"""Measure a training step of each trace method over `GRPOTrainer`'s, on the testbed.

    python -m benchmarks.cost.step_overhead --output benchmarks/cost/step_overhead_cpu.json

The learning rate is 0, so every trainer samples the same completions from the same seeds and does the same work but for
its traces; logging is on at every step. The trainers take turns, a short run each, in an order that rotates; the ratio
of the median generation cycles (generation, reward and two optimizer steps) is taken within a turn, and its median over
turns is reported with its quartiles. On one thread, CPU seconds are given beside wall seconds: they are the steadier
ones on a shared machine. A GPU has wall seconds only.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common.measuring import QUIET, StepClock, in_turns, prepare, processor, ratio_columns
from benchmarks.common.methods import METHODS
from benchmarks.common.stored import own_command
from credit_trl.testbed import BASE_MODEL, answer_reward, make_dataset

# GRPO comes first: the others are divided by it.
COMPARED = ("grpo", "p_trace", "s_trace", "grpo_lambda recent", "grpo_lambda both", "grpo_lambda advantage")


def cycle_seconds(method: str, model, tokenizer, dataset, cycles: int, output_dir: str) -> dict[str, float]:
    """Return the median wall and CPU seconds of a cycle (a generation and two optimizer steps), the first left out."""
    chosen = METHODS[method]
    clock = StepClock()
    trainer = chosen.make_trainer(
        model,
        answer_reward,
        dict(
            output_dir=output_dir,
            per_device_train_batch_size=128,
            num_generations=8,
            max_completion_length=48,
            num_iterations=2,
            max_steps=2 * cycles + 2,
            learning_rate=0.0,
            use_cpu=not torch.cuda.is_available(),
            **QUIET,
            logging_steps=1,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    pairs = [(clock.steps[i], clock.steps[i + 1]) for i in range(2, len(clock.steps), 2)]
    return {
        name: median(first[column] + second[column] for first, second in pairs)
        for column, name in enumerate(("wall", "cpu"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--cycles", type=int, default=3, help="generation cycles of a run that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    prepare(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    dataset = make_dataset(500)
    with tempfile.TemporaryDirectory() as folder:
        seconds = in_turns(
            COMPARED,
            arguments.turns,
            lambda method: cycle_seconds(method, model, tokenizer, dataset, arguments.cycles, folder),
        )
    rows = []
    for method, times in seconds.items():
        row: dict[str, object] = {"method": method}
        for clock in ("wall", "cpu"):
            row |= ratio_columns(clock, times, seconds["grpo"])
        rows.append(row)
    print("| method | wall s | wall ratio | quartiles | CPU s | CPU ratio | quartiles |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    if arguments.output:
        result = {
            "command": own_command("benchmarks.cost.step_overhead"),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "completions_per_step": 128,
            "turns": arguments.turns,
            "rows": rows,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
