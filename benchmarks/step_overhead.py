"""Time of a training step of each trace method over `GRPOTrainer`'s, on the testbed.

    python benchmarks/step_overhead.py --output benchmarks/results/step_overhead_cpu.json

The learning rate is 0, so every trainer samples the same completions from the same seeds and does the same work but for
its traces. The trainers take turns, a short run each, in an order that rotates; the ratio of the median generation
cycles (generation, reward and two optimizer steps) is taken within a turn, and its median over turns is reported with
its range.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from tqdm.auto import tqdm
from trace_kernels import processor
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer

from credit_trl import GRPOLambdaConfig, GRPOLambdaTrainer, STraceConfig, STraceTrainer
from credit_trl.testbed import BASE_MODEL, answer_reward, make_dataset

METHODS = {
    "grpo": (GRPOTrainer, GRPOConfig, {}),
    "p_trace": (STraceTrainer, STraceConfig, dict(trace_entropy_fraction=1.0)),
    "s_trace": (STraceTrainer, STraceConfig, {}),
    "grpo_lambda recent": (GRPOLambdaTrainer, GRPOLambdaConfig, {}),
    "grpo_lambda both": (GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_kernel="both")),
    "grpo_lambda advantage": (GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_target="advantage")),
}


class StepClock(TrainerCallback):
    """Seconds of every optimizer step, from its batch being asked for to its end."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def step_seconds(method: str, model, tokenizer, dataset, steps: int, output_dir: str) -> float:
    """Median seconds a generation cycle of two optimizer steps takes, without the first cycle."""
    trainer_class, config_class, options = METHODS[method]
    clock = StepClock()
    trainer = trainer_class(
        model,
        answer_reward,
        args=config_class(
            output_dir=output_dir,
            per_device_train_batch_size=128,
            num_generations=8,
            max_completion_length=48,
            num_iterations=2,
            max_steps=2 * steps + 2,
            learning_rate=0.0,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            logging_steps=1,
            **options,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    cycles = [sum(clock.seconds[i : i + 2]) for i in range(2, len(clock.seconds), 2)]
    return median(cycles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="generation cycles of a run")
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    for name in ("credit_trl", "accelerate", "trl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    dataset = make_dataset(500)
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=arguments.turns * len(METHODS)) as progress:
        for turn in range(arguments.turns):
            order = list(METHODS)
            for method in order[turn % len(order) :] + order[: turn % len(order)]:
                progress.set_description(method)
                seconds[method].append(step_seconds(method, model, tokenizer, dataset, arguments.steps, folder))
                progress.update()
    rows = []
    for method, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds["grpo"], strict=True)]
        rows.append(
            {
                "method": method,
                "median_seconds": round(median(times), 4),
                "ratio_median": round(median(ratios), 4),
                "ratio_min": round(min(ratios), 4),
                "ratio_max": round(max(ratios), 4),
            }
        )
    print("| method | s / cycle | over GRPO | range |\n|---|---|---|---|")
    for row in rows:
        print("| {method} | {median_seconds} | {ratio_median} | {ratio_min} to {ratio_max} |".format(**row))
    if arguments.output:
        result = {
            "command": "python " + " ".join(["benchmarks/step_overhead.py", *sys.argv[1:]]),
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
