"""Measure the update step of each trace method over `GRPOTrainer`'s, at a real model's size with random weights.

    python -m benchmarks.cost.update_step --output benchmarks/cost/update_step_smollm2_135m_h200.json     # one GPU
    python -m benchmarks.cost.update_step --model tiny --completions 8 --length 32 --rounds 4             # on a CPU

An update is a forward and backward pass and the optimizer's step, in bfloat16 on a GPU. Completions are random tokens
of one length and are never sampled: one batch is used for all updates. Rewards go by a completion's place in its group.

Every method has a process of its own with a model of its own, GRPO has several, and all train on the same core of the
CPU. They take turns, an update each, in an order that rotates. `--starts` times they are started anew. Each update is
divided by the mean of GRPO's in the same round. Reported are the median of these ratios for every process, and the mean
over a method's processes. Processes that do the same differ by about a percent: GRPO's own ratios show how much.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from benchmarks.common.measuring import QUIET, compact_json, prepare, processor
from benchmarks.common.methods import METHODS
from benchmarks.common.processes import interrupt_on_signals
from benchmarks.common.relay import Turns, relay
from benchmarks.common.stored import own_command
from benchmarks.cost.full_step import MODELS, reward
from credit_trl.testbed import BASE_MODEL, make_dataset

# GRPO comes first: the others are divided by it. Its option `top_entropy_quantile` is the threshold that S-trace has.
COMPARED = (
    "grpo", "grpo top entropy", "p_trace", "s_trace", "grpo_lambda recent", "grpo_lambda both", "grpo_lambda advantage",
)  # fmt: skip
PROMPT = 32  # tokens of a prompt


def train(arguments: argparse.Namespace, turns: Turns) -> None:
    """Train for the updates of all rounds on one batch, each when it is this process's turn."""
    updates, on_gpu = arguments.rounds + arguments.warmup, torch.cuda.is_available()
    prepare()
    set_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[arguments.model], dtype=torch.bfloat16 if on_gpu else torch.float32)
    generator = torch.Generator().manual_seed(1)

    def rollout(prompts, trainer):
        tokens = torch.randint(
            10, model.config.vocab_size, (len(prompts), arguments.length), generator=generator
        ).tolist()
        return {"prompt_ids": [[5] * PROMPT for _ in prompts], "completion_ids": tokens, "logprobs": None}

    with tempfile.TemporaryDirectory() as folder:
        trainer = METHODS[arguments.worker].make_trainer(
            model,
            reward,
            dict(
                output_dir=folder,
                per_device_train_batch_size=arguments.completions,
                num_generations=8,
                max_completion_length=arguments.length,
                num_iterations=updates,
                max_steps=updates,
                learning_rate=1e-7,
                use_cpu=not on_gpu,
                **QUIET | {"bf16": on_gpu, "gradient_checkpointing": arguments.gradient_checkpointing},
                logging_steps=updates,
            ),
            train_dataset=make_dataset(arguments.completions),
            processing_class=AutoTokenizer.from_pretrained(BASE_MODEL),
            callbacks=[turns],
            rollout_func=rollout,
        )
        trainer.train()


def compare(arguments: argparse.Namespace, write: Callable[[dict], None]) -> None:
    """Time the updates of all methods in turns, and give `write` what is to be stored, after each start."""
    names = ("model", "completions", "length", "rounds", "warmup")
    words = [word for name in names for word in (f"--{name}", str(getattr(arguments, name)))]
    words += ["--gradient_checkpointing"] * arguments.gradient_checkpointing + ["--any_core"] * arguments.any_core
    commands = {
        f"{method}, {number}": [sys.executable, "-m", "benchmarks.cost.update_step", *words, "--worker", method]
        for method in COMPARED
        for number in range(arguments.baselines if method == "grpo" else 1)
    }
    with torch.device("meta"):
        sizes = AutoModelForCausalLM.from_config(MODELS[arguments.model])
    facts = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in sizes.parameters()),
        **{name: getattr(arguments, name) for name in (*names, "gradient_checkpointing", "any_core")},
        "starts": 0,
        "seconds": 0,
    }
    updates: dict[str, list[list[dict]]] = {method: [] for method in COMPARED}
    for _ in range(arguments.starts):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            figures = relay(
                commands, arguments.rounds, Path(folder), warmup=arguments.warmup, seconds=arguments.seconds
            )
        for name, steps in figures.items():
            updates[name.rpartition(", ")[0]].append(steps)
        facts["seconds"] += round(time.perf_counter() - started)
        facts["starts"] += 1
        facts["rounds"] = min(facts["rounds"], len(steps))  # fewer where the time was up
        write(facts | {"rows": rows(updates, arguments.baselines)})


def rows(updates: dict[str, list[list[dict]]], baselines: int) -> list[dict]:
    """Return what is reported of every method.

    Args:
        updates: method -> the updates of each of its processes, those of a start one after the other.
        baselines: processes of GRPO in a start.
    """
    means = []  # of GRPO's updates, by start and round
    for first in range(0, len(updates["grpo"]), baselines):
        together = zip(*updates["grpo"][first : first + baselines], strict=True)
        means.append([sum(step["seconds"] for step in of_round) / baselines for of_round in together])
    found = []
    for method, of_processes in updates.items():
        ratios = []
        for number, steps in enumerate(of_processes):
            references = means[number // baselines if method == "grpo" else number]
            ratios.append([step["seconds"] / reference for step, reference in zip(steps, references, strict=True)])
        seconds = [[round(step["seconds"], 5) for step in steps] for steps in of_processes]
        medians = [median(of_one) for of_one in ratios]
        found.append(
            {
                "method": method,
                "update_seconds": round(median(value for of_one in seconds for value in of_one), 4),
                "update_ratio": round(sum(medians) / len(medians), 4),
                "process_ratios": [round(value, 4) for value in medians],
                "peak_gib": round(max(step["peak_bytes"] for steps in of_processes for step in steps) / 2**30, 3),
                "seconds_by_round": seconds,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m", help="default: smollm2-135m")
    parser.add_argument("--completions", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="tokens of a completion")
    parser.add_argument("--rounds", type=int, default=40, help="updates of every process that count")
    parser.add_argument("--warmup", type=int, default=3, help="updates before those that count")
    parser.add_argument("--baselines", type=int, default=3, help="processes of GRPO at the same time")
    parser.add_argument("--starts", type=int, default=3, help="how often all processes are started")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--seconds", type=float, help="time of a start, after which no further round begins")
    parser.add_argument("--any_core", action="store_true", help="let the trainers run on all cores of the CPU")
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--relay", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        turns = Turns(arguments.relay, one_core=not arguments.any_core)
        train(arguments, turns)
        return
    interrupt_on_signals()

    def write(found: dict) -> None:
        for made in found["rows"]:
            print(json.dumps({name: value for name, value in made.items() if name != "seconds_by_round"}))
        print(f"{found['starts']} starts of {found['rounds']} rounds in {found['seconds']} s")
        if arguments.output:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(compact_json({"command": own_command("benchmarks.cost.update_step")} | found))

    compare(arguments, write)


if __name__ == "__main__":
    main()
