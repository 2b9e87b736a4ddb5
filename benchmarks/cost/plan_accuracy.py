"""Compare the memory that `scripts.memory_plan` predicts with the memory that real training takes, on a CPU.

    python -m benchmarks.cost.plan_accuracy --output benchmarks/cost/plan_accuracy_cpu.json

Each case trains for two generation batches with TRL in a process of its own, twice:

- tensors: the peak bytes of all tensors alive, in generation, in forward and backward passes, and in the optimizer
  step. It says whether the planner's arithmetic is right;
- resident: the process's peak resident memory, less what was resident before the model was loaded. It says what the
  planner leaves out: the allocator, memory inside operators, Python.

Completions are forced to their full length and prompts are planned for with their real one, so that the plan and the
run speak of the same tensors. The planner's reserve is left out. ZeRO, FSDP2, vLLM and TRL's Triton kernels are not
measured here.
"""

import argparse
import importlib.util
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import TrainerCallback, set_seed
from trl import GRPOTrainer

from scripts.memory_plan import Limits, load_config, make_plan, read_launch, read_settings
from scripts.memory_plan.fake_model import LiveBytes

ROOT = Path(__file__).parents[2]
ONCE = ["--steps_per_generation", "1", "--num_iterations", "1"]
SMOLLM2 = [
    "--config", str(ROOT / "recipes" / "smollm2_cpu.yaml"), "--method", "grpo", "--max_completion_length", "48",
    "--per_device_train_batch_size", "8", *ONCE,
]  # fmt: skip
ALL_WEIGHTS = [*SMOLLM2, "--use_peft", "false"]
CASES = {
    "testbed": ["--method", "grpo", *ONCE],
    "testbed, S-trace": ["--method", "s_trace", *ONCE],
    "SmolLM2-135M, LoRA": SMOLLM2,
    "SmolLM2-135M, LoRA, checkpointed": [*SMOLLM2, "--gradient_checkpointing", "true"],
    "SmolLM2-135M": ALL_WEIGHTS,
    "SmolLM2-135M, checkpointed": [*ALL_WEIGHTS, "--gradient_checkpointing", "true"],
}
PHASES = ("generation", "backward", "optimizer step")


def load_script():
    spec = importlib.util.spec_from_file_location("train", ROOT / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resident(peak: bool) -> int:
    if peak:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class PhaseClock(TrainerCallback):
    """Measure the peak of `live` in every phase, in bytes, weights included."""

    def __init__(self, live: LiveBytes, weights: int):
        self.live, self.weights = live, weights
        self.peaks = dict.fromkeys(PHASES, 0)

    def start(self) -> None:
        self.live.peak = self.live.now

    def end(self, phase: str) -> None:
        self.peaks[phase] = max(self.peaks[phase], self.live.peak + self.weights)
        self.start()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.start()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.end("optimizer step")


def clocked(trainer: GRPOTrainer, clock: PhaseClock) -> None:
    """Let `clock` see where generation and the passes of `trainer` begin and end."""
    generate, compute = trainer._generate, trainer.training_step

    def timed_generate(*args, **kwargs):
        clock.start()
        result = generate(*args, **kwargs)
        clock.end("generation")
        return result

    def timed_step(*args, **kwargs):
        result = compute(*args, **kwargs)
        clock.end("backward")
        return result

    trainer._generate, trainer.training_step = timed_generate, timed_step


def run_case(arguments: list[str], tensors: bool) -> dict:
    """Train as `arguments` say. Return the peaks by phase or of resident memory, and the longest prompt in tokens."""
    train = load_script()
    with tempfile.TemporaryDirectory() as folder:
        run_args, model_args, args = train.parse(
            [*arguments, "--use_cpu", "true", "--output_dir", folder], train.TESTBED
        )
        args.max_steps = 2 * args.steps_per_generation // args.gradient_accumulation_steps * args.num_iterations
        args.generation_kwargs = {"min_new_tokens": args.max_completion_length}
        args.log_completions = False
        args.disable_tqdm = True
        args.save_strategy = "no"
        set_seed(0)
        tokenizer = train.load_tokenizer(model_args, args)
        problems = train.load_problems(run_args, tokenizer.chat_template is not None)
        before = resident(peak=False)
        trainer = train.make_trainer(run_args, model_args, args, tokenizer, *problems)
        prompts = []
        prepare = trainer._generate_and_score_completions

        def noted(inputs):
            outputs = prepare(inputs)
            prompts.append(outputs["prompt_ids"].shape[1])
            return outputs

        trainer._generate_and_score_completions = noted
        if not tensors:
            trainer.train()
            return {"resident": resident(peak=True) - before, "prompt": max(prompts)}
        live = LiveBytes()
        live.ignore(trainer.model)
        weights = sum(tensor.nbytes for tensor in trainer.model.parameters())
        clock = PhaseClock(live, weights)
        clocked(trainer, clock)
        trainer.add_callback(clock)
        with live:
            trainer.train()
        return clock.peaks | {"prompt": max(prompts)}


def plan_case(arguments: list[str], prompt: int) -> dict[str, float]:
    """Return the planner's bytes for every phase."""
    recipe = str(ROOT / "recipes" / "testbed.yaml")
    words = list(arguments)
    for option in ("--config", "--method"):
        if option in words:
            value = words.pop(words.index(option) + 1)
            words.remove(option)
            recipe = value if option == "--config" else recipe
    settings = read_settings(recipe, words)
    launch = read_launch(str(ROOT / "accelerate_configs" / "cpu.yaml"), None, None)
    name = settings["model_name_or_path"] or str(ROOT / "credit_trl" / "testbed" / "base_model")
    plan = make_plan(load_config(name), settings, launch, Limits(float("inf"), reserve=0, prompt=prompt))
    return {phase: sum(parts.values()) for phase, parts in plan.phases.items()}


def in_a_process(case: str, tensors: bool, model: str | None) -> dict:
    command = [
        sys.executable,
        "-m",
        "benchmarks.cost.plan_accuracy",
        "--case",
        case,
        *(["--tensors"] if tensors else []),
    ]
    command += ["--smollm2", model] if model else []
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{case}: {result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", default=str(ROOT / "models" / "SmolLM2-135M-Instruct"), help="its folder")
    parser.add_argument("--output", help="JSON file for the results")
    parser.add_argument("--case", choices=CASES, help="run this one alone, in this process, and print its peaks")
    parser.add_argument("--tensors", action="store_true", help="with --case: count tensors, not resident memory")
    options = parser.parse_args()

    def arguments(case: str) -> list[str]:
        named = ["--model_name_or_path", options.smollm2] if case.startswith("SmolLM2") else []
        return [*CASES[case], *named]

    if options.case:
        torch.set_num_threads(1)
        print(json.dumps(run_case(arguments(options.case), options.tensors)))
        return
    cases = {}
    for case in CASES:
        tensors = in_a_process(case, True, options.smollm2)
        prompt = tensors.pop("prompt")
        memory = in_a_process(case, False, options.smollm2)["resident"]
        planned = plan_case(arguments(case), prompt)
        rounded = {
            "prompt tokens": prompt,
            "MiB of tensors, planned": {phase: round(planned[phase] / 2**20, 1) for phase in PHASES},
            "MiB of tensors, measured": {phase: round(tensors[phase] / 2**20, 1) for phase in PHASES},
            "planned over measured": {phase: round(planned[phase] / tensors[phase], 3) for phase in PHASES},
            "MiB resident, measured": round(memory / 2**20, 1),
            "planned peak over resident": round(max(planned.values()) / memory, 3),
        }
        cases[case] = rounded
        print(case, json.dumps(rounded), flush=True)
    if options.output:
        setting = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1}
        Path(options.output).write_text(json.dumps({"setting": setting, "cases": cases}, indent=2) + "\n")


if __name__ == "__main__":
    main()
