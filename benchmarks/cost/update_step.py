"""Measure the update step of each trace method over `GRPOTrainer`'s, at a real model's size with random weights.

    python -m benchmarks.cost.update_step --output benchmarks/cost/update_step_smollm2_135m_h200.json     # one GPU
    python -m benchmarks.cost.update_step --model tiny --completions 8 --length 32 --rounds 4             # on a CPU

An update is a forward and backward pass and the optimizer's step, in bfloat16 on a GPU. Completions are random tokens
of one length and are never sampled: one batch is used for all updates. Rewards go by a completion's place in its group.

Every trainer is in a process of its own, with a model of its own, and all train on the same core of the CPU. They take
turns, an update each, in an order that rotates. Each update is divided by GRPO's of the same round; reported are the
median of these ratios, its 95% bootstrap interval over rounds, and the quartiles. A second GRPO shows what the
measurement cannot tell apart.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from benchmarks.common.measuring import QUIET, compact_json, median_interval, prepare, processor, ratio_columns
from benchmarks.common.methods import METHODS
from benchmarks.common.processes import interrupt_on_signals
from benchmarks.common.relay import Turns, relay
from benchmarks.common.stored import own_command
from benchmarks.cost.full_step import MODELS, reward
from credit_trl.testbed import BASE_MODEL, make_dataset

# What takes turns -> its method. GRPO comes first: the others are divided by it.
COMPARED = {"grpo": "grpo", "grpo again": "grpo"} | {
    name: name for name in ("p_trace", "s_trace", "grpo_lambda recent", "grpo_lambda both", "grpo_lambda advantage")
}
PROMPT = 32  # tokens of a prompt


def train(
    method: str, model_name: str, completions: int, length: int, updates: int, checkpointing: bool, turns: Turns
) -> None:
    """Train for so many updates on one batch, each when it is this process's turn."""
    prepare()
    on_gpu = torch.cuda.is_available()
    set_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[model_name], dtype=torch.bfloat16 if on_gpu else torch.float32)
    generator = torch.Generator().manual_seed(1)

    def rollout(prompts, trainer):
        tokens = torch.randint(10, model.config.vocab_size, (len(prompts), length), generator=generator).tolist()
        return {"prompt_ids": [[5] * PROMPT for _ in prompts], "completion_ids": tokens, "logprobs": None}

    with tempfile.TemporaryDirectory() as folder:
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
            processing_class=AutoTokenizer.from_pretrained(BASE_MODEL),
            callbacks=[turns],
            rollout_func=rollout,
        )
        trainer.train()


def compare(
    model: str, completions: int, length: int, rounds: int, warmup: int, checkpointing: bool,
    seconds: float | None = None, any_core: bool = False,
) -> dict:  # fmt: skip
    """Time the updates of all methods in turns, and return what is to be stored."""
    options = {"model": model, "completions": completions, "length": length, "rounds": rounds, "warmup": warmup}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--gradient_checkpointing"] * checkpointing + ["--any_core"] * any_core
    commands = {
        name: [sys.executable, "-m", "benchmarks.cost.update_step", *words, "--worker", method]
        for name, method in COMPARED.items()
    }
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        figures = relay(commands, rounds, Path(folder), warmup=warmup, seconds=seconds)
    rows = [row(name, steps, figures["grpo"]) for name, steps in figures.items()]
    with torch.device("meta"):
        sizes = AutoModelForCausalLM.from_config(MODELS[model])
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "torch": torch.__version__,
        "model": model,
        "parameters": sum(parameter.numel() for parameter in sizes.parameters()),
        "completions": completions,
        "length": length,
        "rounds": len(figures["grpo"]),
        "warmup_rounds": warmup,
        "gradient_checkpointing": checkpointing,
        "seconds": round(time.perf_counter() - started),
        "rows": rows,
    }


def row(name: str, steps: list[dict], baseline: list[dict]) -> dict:
    """Return what is reported of the updates of one trainer, beside GRPO's of the same rounds."""
    updates, references = (
        [{"update": step["seconds"], "cpu": step["cpu_seconds"]} for step in made] for made in (steps, baseline)
    )
    ratios = [step["seconds"] / other["seconds"] for step, other in zip(steps, baseline, strict=True)]
    return {
        "method": name,
        **ratio_columns("update", updates, references),
        "update_interval": median_interval(ratios),
        **ratio_columns("cpu", updates, references),
        "peak_gib": round(max(step["peak_bytes"] for step in steps) / 2**30, 3),
        "seconds_by_round": [round(step["seconds"], 5) for step in steps],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m", help="default: smollm2-135m")
    parser.add_argument("--completions", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="tokens of a completion")
    parser.add_argument("--rounds", type=int, default=80, help="updates of every method that count")
    parser.add_argument("--warmup", type=int, default=3, help="updates before those that count")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--seconds", type=float, help="time in all, after which no further round begins")
    parser.add_argument("--any_core", action="store_true", help="let the trainers run on all cores of the CPU")
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--relay", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (arguments.model, arguments.completions, arguments.length)
    if arguments.worker:
        updates = arguments.rounds + arguments.warmup
        turns = Turns(arguments.relay, one_core=not arguments.any_core)
        train(arguments.worker, *sizes, updates, arguments.gradient_checkpointing, turns)
        return
    interrupt_on_signals()
    result = {"command": own_command("benchmarks.cost.update_step")} | compare(
        *sizes,
        arguments.rounds,
        arguments.warmup,
        arguments.gradient_checkpointing,
        arguments.seconds,
        arguments.any_core,
    )
    for made in result["rows"]:
        print(json.dumps({name: value for name, value in made.items() if name != "seconds_by_round"}))
    print(f"{result['rounds']} rounds in {result['seconds']} s, start included")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(compact_json(result))


if __name__ == "__main__":
    main()
