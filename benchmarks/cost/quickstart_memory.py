"""Measure the GPU memory of `notebooks/01_quickstart.ipynb` within the memory of a T4, on a larger GPU.

    python -m benchmarks.cost.quickstart_memory --output benchmarks/cost/quickstart_memory_h200.json
    python -m benchmarks.cost.quickstart_memory --rehearse --steps 4       # the tiny built-in model, for a CPU

Runs the notebook's own code cells in one process. Replaced in them are the model's name, by `--model`, and the number
of training steps, by `--steps`; pictures are made but not displayed. Batches keep their size. PyTorch's allocator may
take `--memory_gib` less `--context_gib`, and beyond that the run ends with PyTorch's out-of-memory error. Training is
in float32, as on a T4: PyTorch is made to say that the GPU has no bfloat16 of its own, and TF32 is off.

Every cell has the peak memory of its tensors (allocated), the peak that the allocator held for them (reserved), and its
seconds. Training also has the seconds of a step and the largest batch of its backward passes. Few steps may miss the
longest prompt: `possible_tokens` is the length of a batch with that prompt and a completion of full length.

Not shown: the speed of a T4, and what its own kernels and its CUDA context take.
"""

import argparse
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.common.measuring import StepClock, compact_json, prepare, processor
from benchmarks.common.stored import own_command

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "01_quickstart.ipynb"
ON_GPU = torch.cuda.is_available()
GIB = 2**30
HUB_NAME = '"HuggingFaceTB/SmolLM2-135M-Instruct"'
STEPS = "max_steps=80 if OFFLINE else 120"
OFFLINE = "OFFLINE = False"
DISPLAY, NO_DISPLAY = "from IPython.display import Image, display", "Image = display = lambda *shown, **options: None"


def code_cells(notebook: Path, replacements: dict[str, str]) -> list[str]:
    """Return the code of the notebook without its install cell, and with each text replaced where it stands once."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    codes = ["".join(cell["source"]) for cell in cells if "setup" not in cell["metadata"].get("tags", [])]
    for old, new in replacements.items():
        count = sum(code.count(old) for code in codes)
        if count != 1:
            raise ValueError(f"{notebook.name} has {old!r} {count} times, not once: adapt {Path(__file__).name}")
        codes = [code.replace(old, new) for code in codes]
    return codes


def act_as_t4(allowed: float) -> None:
    """Let PyTorch's allocator take `allowed` bytes, and say that the GPU only emulates bfloat16."""
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    torch.cuda.is_bf16_supported = lambda including_emulation=True: including_emulation
    torch.set_float32_matmul_precision("highest")


def gib(count: float) -> float:
    return round(count / GIB, 3)


class Training(StepClock):
    """Measure every step's seconds, the largest batch that is trained on, and the peak memory before training."""

    def __init__(self, trainer):
        super().__init__()
        self.peak_before, self.largest = 0.0, (0, 0)
        trainer.model.register_forward_pre_hook(self.see, with_kwargs=True)
        trainer.add_callback(self)

    def see(self, model, inputs, named):
        if torch.is_grad_enabled():
            self.largest = max(self.largest, tuple(named["input_ids"].shape), key=lambda shape: shape[0] * shape[1])

    def on_train_begin(self, args, state, control, **kwargs):
        self.peak_before = gib(torch.cuda.max_memory_allocated()) if ON_GPU else 0.0

    def figures(self, namespace: dict[str, Any]) -> dict[str, Any]:
        trainer, args = namespace["trainer"], namespace["args"]
        seconds, cycle = [wall for wall, _ in self.steps], args.steps_per_generation
        prompts = trainer._tokenize_prompts(list(namespace["train_dataset"]["prompt"]))[0]
        rows, tokens = self.largest
        return {
            "steps": trainer.state.global_step,
            "batch_size": args.per_device_train_batch_size,
            "steps_per_generation": cycle,
            "max_completion_length": args.max_completion_length,
            "held_out": len(namespace["held_out"]),
            "weights": sorted({str(weight.dtype) for weight in trainer.model.parameters()}),
            "largest_batch": {"rows": rows, "tokens": tokens},
            "possible_tokens": max(map(len, prompts)) + args.max_completion_length,
            "allocated_before_training_gib": self.peak_before,
            "step_with_sampling_seconds": round(median(seconds[::cycle]), 3),
            "step_without_sampling_seconds": round(median(s for n, s in enumerate(seconds) if n % cycle), 3),
        }


def run_cells(codes: list[str], namespace: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run the cells in `namespace`, and yield what each of them took."""
    for number, code in enumerate(codes, start=1):
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        exec(compile(code, f"cell {number}", "exec"), namespace)
        if ON_GPU:
            torch.cuda.synchronize()
        yield {
            "cell": number,
            "begins": code.splitlines()[0][:40],
            "allocated_gib": gib(torch.cuda.max_memory_allocated()) if ON_GPU else 0.0,
            "reserved_gib": gib(torch.cuda.max_memory_reserved()) if ON_GPU else 0.0,
            "seconds": round(time.perf_counter() - start, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models" / "SmolLM2-135M-Instruct"), help="folder of the model")
    parser.add_argument("--steps", type=int, default=12, help="training steps (the notebook: 120)")
    parser.add_argument("--memory_gib", type=float, default=14.5, help="of a T4, rounded down: PyTorch reports 14.56")
    parser.add_argument("--context_gib", type=float, default=0.5, help="of CUDA and its kernels: assumed")
    parser.add_argument("--rehearse", action="store_true", help="the notebook with OFFLINE = True, for a CPU")
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: at least 2, of which the first samples and the second does not")
    if not (ON_GPU or arguments.rehearse):
        parser.error("no GPU: --rehearse runs on a CPU")
    replacements = {STEPS: f"max_steps={arguments.steps}", DISPLAY: NO_DISPLAY}
    replacements |= {OFFLINE: "OFFLINE = True"} if arguments.rehearse else {HUB_NAME: repr(arguments.model)}
    codes = code_cells(NOTEBOOK, replacements)
    prepare(torch.get_num_threads())
    allowed = arguments.memory_gib - arguments.context_gib
    if ON_GPU:
        act_as_t4(allowed * GIB)

    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells, training = [], None
    for row in run_cells(codes, namespace):
        tqdm.write(", ".join(f"{name} {value}" for name, value in row.items()))
        cells.append(row)
        if training is None and "trainer" in namespace:
            training = Training(namespace["trainer"])
    result = {
        "command": own_command("benchmarks.cost.quickstart_memory"),
        "device": torch.cuda.get_device_name() if ON_GPU else processor(),
        "torch": torch.__version__,
        "trl": version("trl"),
        "transformers": version("transformers"),
        "bf16": namespace["BF16"],
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "allowed_gib": allowed if ON_GPU else None,
        "training": training.figures(namespace),
        "cells": cells,
    }
    if ON_GPU:  # the context of this GPU, and what other processes hold
        free, total = torch.cuda.mem_get_info()
        result["outside_allocator_gib"] = gib(total - free - torch.cuda.memory_reserved())
    print(json.dumps({name: value for name, value in result.items() if name != "cells"}, indent=1))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(compact_json(result))


if __name__ == "__main__":
    main()
