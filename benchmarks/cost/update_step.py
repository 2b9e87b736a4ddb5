"""Measure the update step of each trace method over `GRPOTrainer`'s, at a real model's size with random weights.

    python -m benchmarks.cost.update_step --output benchmarks/cost/update_step_smollm2_135m_h100.json     # one GPU
    python -m benchmarks.cost.update_step --model tiny --completions 8 --length 32 --turns 2              # on a CPU

An update is a forward and backward pass and the optimizer's step, in bfloat16 on a GPU. Completions are random tokens
of one length and are never sampled: a batch is used for all updates of a run, of which the first does not count.
Rewards go by a completion's place in its group. The trainers take turns, in an order that rotates; the median of a
run's updates is divided by GRPO's of the same turn, and the median of these ratios is reported with its quartiles.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

from benchmarks.common.measuring import QUIET, in_turns, prepare, processor, ratio_columns
from benchmarks.common.methods import METHODS
from benchmarks.common.stored import own_command
from benchmarks.cost.full_step import MODELS, now, reward
from credit_trl.testbed import BASE_MODEL, make_dataset

# GRPO comes first: the others are divided by it.
COMPARED = ("grpo", "p_trace", "s_trace", "grpo_lambda recent", "grpo_lambda both", "grpo_lambda advantage")
PROMPT = 32  # tokens of a prompt


class UpdateClock(TrainerCallback):
    """Measure the seconds of every update, and the peak of allocated bytes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(now() - self.begun)


def update(
    method: str, model, tokenizer, completions: int, length: int, updates: int, checkpointing: bool, folder: str
) -> dict[str, float]:
    """Return the median seconds of the updates after the first, and the peak bytes."""
    on_gpu, vocabulary = torch.cuda.is_available(), model.config.vocab_size
    generator = torch.Generator().manual_seed(1)

    def rollout(prompts, trainer):
        tokens = torch.randint(10, vocabulary, (len(prompts), length), generator=generator).tolist()
        return {"prompt_ids": [[5] * PROMPT for _ in prompts], "completion_ids": tokens, "logprobs": None}

    clock = UpdateClock()
    trainer = METHODS[method].make_trainer(
        model,
        reward,
        dict(
            output_dir=folder,
            per_device_train_batch_size=completions,
            num_generations=8,
            max_completion_length=length,
            num_iterations=updates,
            max_steps=updates,
            learning_rate=1e-7,
            use_cpu=not on_gpu,
            **QUIET | {"bf16": on_gpu, "gradient_checkpointing": checkpointing},
            logging_steps=updates,
        ),
        train_dataset=make_dataset(completions),
        processing_class=tokenizer,
        callbacks=[clock],
        rollout_func=rollout,
    )
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return {"update": median(clock.seconds[1:]), "peak_bytes": peak}


def compare(model_name: str, completions: int, length: int, updates: int, turns: int, checkpointing: bool) -> dict:
    """Time the updates of all methods in turns, and return what is to be stored."""
    prepare()
    on_gpu = torch.cuda.is_available()
    set_seed(0)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model = AutoModelForCausalLM.from_config(MODELS[model_name], dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        figures = in_turns(
            COMPARED,
            turns,
            lambda method: update(method, model, tokenizer, completions, length, updates, checkpointing, folder),
        )
    rows = [
        {"method": method}
        | ratio_columns("update", runs, figures["grpo"])
        | {"peak_gib": round(max(run["peak_bytes"] for run in runs) / 2**30, 3)}
        for method, runs in figures.items()
    ]
    return {
        "device": torch.cuda.get_device_name() if on_gpu else processor(),
        "torch": torch.__version__,
        "model": model_name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "completions": completions,
        "length": length,
        "updates_per_run": updates - 1,
        "turns": turns,
        "gradient_checkpointing": checkpointing,
        "seconds": round(time.perf_counter() - started),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m", help="default: smollm2-135m")
    parser.add_argument("--completions", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="tokens of a completion")
    parser.add_argument("--updates", type=int, default=12, help="of a run, the first of which does not count")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    result = {"command": own_command("benchmarks.cost.update_step")} | compare(
        arguments.model,
        arguments.completions,
        arguments.length,
        arguments.updates,
        arguments.turns,
        arguments.gradient_checkpointing,
    )
    for row in result["rows"]:
        print(row)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
