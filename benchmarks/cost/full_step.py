"""Compare time and peak memory of a full step of every method with `GRPOTrainer`'s, at a real model's size.

    python -m benchmarks.cost.full_step --output benchmarks/cost/full_step_gpu.json             # one GPU of 80 GB
    python -m benchmarks.cost.full_step --model tiny --max_completion_length 64 --turns 3       # a rehearsal on a CPU

Qwen3-1.7B's sizes, bfloat16, gradient checkpointing, 8 completions of 2,048 tokens that are sampled to their full
length. Its weights are random, so it writes noise, in the testbed's alphabet; rewards go by a completion's place in its
group. The trainers take turns, in an order that rotates; every run makes two steps, of which the second counts. Times
are of the whole step and of the update alone (forward, backward, optimizer: where traces are), as ratios within a turn.
Memory is CUDA's peak of what was allocated, beside what `scripts.memory_plan` says of it.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config, TrainerCallback, set_seed

from benchmarks.common.measuring import QUIET, in_turns, now, prepare, processor, ratio_columns
from benchmarks.common.methods import METHODS
from benchmarks.common.stored import own_command
from credit_trl.testbed import BASE_MODEL, make_dataset
from scripts.memory_plan import Limits, make_plan, read_launch, read_settings

ROOT = Path(__file__).parents[2]
# GRPO comes first: the others are divided by it.
COMPARED = ("grpo", "p_trace", "s_trace", "grpo_lambda recent", "grpo_lambda both", "rrpo", "srpo 1x4")
COMPLETIONS = 8
# Sizes as in the models' own configuration files.
MODELS = {
    "tiny": Qwen3Config(
        vocab_size=512, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
    ),
    "smollm2-135m": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    "qwen3-1.7b": Qwen3Config(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
}  # fmt: skip


def reward(completions, **kwargs):
    """Return rewards that give every group right and wrong completions, whatever noise the completions are."""
    return [float(place % 4 == 0) for place in range(len(completions))]


class PhaseClock(TrainerCallback):
    """Measure the seconds of the last step and of its update alone, and its peak of allocated memory."""

    def on_step_begin(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.begun = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.ended = now()
        self.peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def full_step(method: str, model_name: str, length: int, folder: str) -> dict[str, float]:
    """Return the seconds of the second of two steps, the seconds of its update, and its peak bytes."""
    chosen, clock, tokenizer = METHODS[method], PhaseClock(), AutoTokenizer.from_pretrained(BASE_MODEL)
    on_gpu = torch.cuda.is_available()
    config = MODELS[model_name]
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if on_gpu else torch.float32)
    trainer = chosen.make_trainer(
        model,
        reward,
        dict(
            output_dir=folder,
            per_device_train_batch_size=COMPLETIONS,
            num_generations=COMPLETIONS,
            max_completion_length=length,
            # The tokenizer knows a few of the model's tokens; no completion ends early.
            generation_kwargs={"suppress_tokens": [tokenizer.eos_token_id, *range(len(tokenizer), config.vocab_size)]},
            max_steps=2,
            use_cpu=not on_gpu,
            **QUIET | {"bf16": on_gpu, "gradient_checkpointing": True},
        ),
        train_dataset=make_dataset(16),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    generate = trainer._generate_and_score_completions

    def timed(inputs):
        outputs = generate(inputs)
        clock.generated = now()
        return outputs

    trainer._generate_and_score_completions = timed
    trainer.train()
    return {"step": clock.ended - clock.begun, "update": clock.ended - clock.generated, "peak_bytes": clock.peak}


def planned_gib(model_name: str, length: int) -> float:
    """Return the planner's peak, in GiB, for a step of GRPO on one GPU."""
    options = {
        "dtype": "bfloat16", "bf16": True, "gradient_checkpointing": True, "max_completion_length": length,
        "per_device_train_batch_size": COMPLETIONS, "num_generations": COMPLETIONS,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    settings = read_settings(None, words)
    launch = read_launch(str(ROOT / "accelerate_configs" / "gpu.yaml"), None, None)
    plan = make_plan(MODELS[model_name], settings, launch, Limits(float("inf"), reserve=0, prompt=32))
    return max(sum(parts.values()) for parts in plan.phases.values()) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="qwen3-1.7b", help="default: qwen3-1.7b")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=COMPARED, metavar="METHOD")
    parser.add_argument("--max_completion_length", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    methods = ["grpo", *(name for name in arguments.methods if name != "grpo")]
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        figures = in_turns(
            methods,
            arguments.turns,
            lambda method: full_step(method, arguments.model, arguments.max_completion_length, folder),
        )
    rows = []
    for method, runs in figures.items():
        row: dict[str, object] = {"method": method}
        for phase in ("step", "update"):
            row |= ratio_columns(phase, runs, figures["grpo"])
        row["peak_gib"] = round(max(run["peak_bytes"] for run in runs) / 2**30, 3)
        rows.append(row)
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    planned = round(planned_gib(arguments.model, arguments.max_completion_length), 3)
    print(f"planned peak of GRPO on one GPU: {planned} GiB")
    if arguments.output:
        result = {
            "command": own_command("benchmarks.cost.full_step"),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
            "torch": torch.__version__,
            "turns": arguments.turns,
            "planned_grpo_gib": planned,
            "rows": rows,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
