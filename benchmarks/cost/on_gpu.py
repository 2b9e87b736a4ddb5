"""Check and measure on a GPU everything about the traces that needs one, in a run of a few minutes.

    python -m benchmarks.cost.on_gpu --output benchmarks/cost/fused_h200.json     # one GPU
    python -m benchmarks.cost.on_gpu --rehearse                                      # tiny, on a CPU

- checks: traces and their gradients beside the same in float64 on the CPU, also under `torch.compile`; that TF32,
  bfloat16 autocast and deterministic algorithms change no bit; that nothing waits for the GPU; how many kernels the GPU
  is given.
- credit: what a loss reads under a trace, its gradient and the sums that are logged, in the same way.
- kernels: `benchmarks.cost.trace_kernels`, normalized, 16 completions.
- limits: GRPO-lambda at lambda 0 beside GRPO, on the testbed's model: weights and logged figures.

A part that fails is stored as its error, and the others go on.
"""

import argparse
import json
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from benchmarks.common.measuring import QUIET, prepare, processor
from benchmarks.common.methods import METHODS, Method
from benchmarks.common.stored import own_command
from benchmarks.cost.trace_kernels import FORMS, launches, measure, print_table, relative_error
from credit_trl import GRPOLambdaConfig, GRPOLambdaTrainer
from credit_trl.testbed import BASE_MODEL, answer_reward, make_dataset
from credit_trl.traces.credit import traced_old_logps
from credit_trl.traces.kernels import HAS_TRITON, KERNELS, eligibility_trace

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
FAILURES = (RuntimeError, AssertionError, ValueError, TypeError)  # CUDA's errors are runtime errors
LAMBDA_ZERO = Method(GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_lambda=0.0, negative_advantage_floor=None))


def traced(trace: Callable, x, mask, eligible, gradient, **options) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().requires_grad_()
    z = trace(x, mask, eligible=eligible, **options)
    return z.detach(), torch.autograd.grad(z, x, gradient)[0]


def settings() -> dict[str, Callable]:
    """Return functions that run a function under a setting that must not change its result."""

    def tf32(run):
        torch.set_float32_matmul_precision("high")
        try:
            return run()
        finally:
            torch.set_float32_matmul_precision("highest")

    def autocast(run):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return run()

    def deterministic(run):
        torch.use_deterministic_algorithms(True)
        try:
            return run()
        finally:
            torch.use_deterministic_algorithms(False)

    def without_waiting(run):
        if not ON_GPU:
            return run()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return run()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return {setting.__name__: setting for setting in (tf32, autocast, deterministic, without_waiting)}


def check(kernel: str, normalize: bool, B: int, T: int, decay: float) -> dict:
    """Compare one kernel with itself in float64 on the CPU, and under other settings."""
    generator = torch.Generator().manual_seed(T)
    x = 0.1 * torch.randn(B, T, generator=generator)
    mask, eligible = (torch.rand(B, T, generator=generator) < share for share in (0.9, 0.5))
    gradient = torch.randn(B, T, generator=generator)
    options = dict(decay=decay, kernel=kernel, normalize=normalize)
    expected = traced(eligibility_trace, x.double(), mask, eligible, gradient.double(), **options)
    arguments = [tensor.to(DEVICE) for tensor in (x, mask, eligible, gradient)]
    plain = traced(eligibility_trace, *arguments, **options)
    row: dict = {"kernel": kernel, "normalize": normalize, "B": B, "T": T, "decay": decay} | errors(plain, expected)
    for name, setting in settings().items():
        try:
            result = setting(lambda: traced(eligibility_trace, *arguments, **options))
            row[name] = all(torch.equal(value, reference) for value, reference in zip(result, plain, strict=True))
        except RuntimeError as error:  # what is not deterministic, or waits
            row[name] = str(error)
    return row | launches(lambda: traced(eligibility_trace, *arguments, **options))


def errors(
    result: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], names: tuple[str, ...] = ("z", "gradient")
) -> dict[str, float]:
    """Return the largest errors of each tensor, such as a trace and its gradient, relative to the largest in it."""
    return {
        f"{name}_relative_error": relative_error(value, truth)
        for name, value, truth in zip(names, result, expected, strict=True)
    }


def compiled(kernel: str) -> dict:
    """Compare a trace that `torch.compile` has compiled with the same in float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    x, gradient = torch.randn(2, 4, 300, generator=generator)
    mask = torch.rand(4, 300, generator=generator) < 0.9
    options = dict(decay=0.99, kernel=kernel, normalize=True)
    expected = traced(eligibility_trace, x.double(), mask, None, gradient.double(), **options)
    trace = torch.compile(eligibility_trace, fullgraph=True, backend="inductor" if ON_GPU else "aot_eager")
    result = traced(trace, *(tensor.to(DEVICE) for tensor in (x, mask)), None, gradient.to(DEVICE), **options)
    return {"kernel": kernel, "compiled": True} | errors(result, expected)


def credit_check(kernel: str, trust_region: str, B: int, T: int) -> dict:
    """Compare what a loss reads under a trace, and its gradient, with the same in float64 on the CPU."""
    generator = torch.Generator().manual_seed(T)
    logps, moves, gradient = torch.randn(3, B, T, generator=generator)
    mask, eligible = (torch.rand(B, T, generator=generator) < share for share in (0.9, 0.5))
    advantages = torch.randn(B, generator=generator)
    options = dict(decay=0.99, kernel=kernel, normalize=True, trust_region=trust_region)
    options |= dict(epsilon_low=0.2, epsilon_high=1.3 if trust_region == "weight" else 0.3)

    def run(dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
        tensors = logps, logps - 0.2 * moves, advantages, gradient
        own, old, of_rows, direction = (tensor.to(device, dtype, copy=True) for tensor in tensors)
        marks = dict(eligible=eligible.to(device))
        read, (_, totals) = traced_old_logps(own.requires_grad_(), old, mask.to(device), of_rows, **options, **marks)
        return read.detach(), torch.autograd.grad(read, own, direction)[0], totals

    found, expected = run(torch.float32, DEVICE), run(torch.float64, "cpu")
    row: dict = {"kernel": kernel, "trust_region": trust_region, "B": B, "T": T}
    row |= errors(found[:2], expected[:2], ("read", "gradient"))
    difference = (found[2].cpu() - expected[2]) / expected[2].clamp(min=1)
    row["totals_relative_error"] = float(f"{difference.abs().max():.2g}")
    row["deterministic"] = all(torch.equal(*pair) for pair in zip(run(torch.float32, DEVICE), found, strict=True))
    return row | launches(lambda: run(torch.float32, DEVICE))


def checks(lengths: list[int]) -> list[dict]:
    rows = [check(kernel, normalize, 4, T, 0.99) for T in lengths for kernel in KERNELS for normalize in (False, True)]
    rows += [
        check(kernel, True, 4, lengths[-1], decay) for kernel in ("recent", "both") for decay in (0.0, 0.9999, 1.0)
    ]
    return rows + [compiled(kernel) for kernel in ("recent", "both")]


def kernels(rows: int, lengths: list[int], turns: int) -> list[dict]:
    forms, figures = [form for form in FORMS if form != "loop"], []
    with tqdm(total=len(lengths) * 2 * len(forms) * turns, desc="trace kernels") as progress:
        for T in lengths:
            figures += measure(forms, rows, T, DEVICE, turns, True, progress)
    print_table(figures)
    return figures


def trained(method: Method, steps: int, **options) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Train the testbed's model for a few steps, and return its weights and what it logged but for times."""
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = method.make_trainer(
            AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32),
            answer_reward,
            dict(
                output_dir=folder,
                per_device_train_batch_size=16,
                num_generations=8,
                max_completion_length=32,
                num_iterations=2,
                max_steps=steps,
                learning_rate=1e-3,
                use_cpu=not ON_GPU,
                **QUIET | options,
                logging_steps=1,
            ),
            train_dataset=make_dataset(64),
            processing_class=AutoTokenizer.from_pretrained(BASE_MODEL),
        )
        trainer.train()
    timed = ("time", "runtime", "per_second")
    log = [{k: v for k, v in entry.items() if not any(t in k for t in timed)} for entry in trainer.state.log_history]
    return {name: value.cpu() for name, value in trainer.model.state_dict().items()}, log


def limits(steps: int) -> list[dict]:
    """Compare GRPO-lambda at lambda 0 with GRPO to the bit, and GRPO with a second run of itself."""
    rows = []
    for bf16 in (False, True):
        for loss_type in ("dapo", "grpo"):
            options = dict(loss_type=loss_type, bf16=bf16)
            (weights, log), (again, _), (zero, zero_log) = (
                trained(method, steps, **options) for method in (METHODS["grpo"], METHODS["grpo"], LAMBDA_ZERO)
            )
            row = {"bf16": bf16, "loss_type": loss_type}
            for name, trained_weights in (("grpo_again", again), ("lambda_zero", zero)):
                row[f"{name}_largest_difference"] = max(
                    (trained_weights[k] - weights[k]).abs().max().item() for k in weights
                )
            row["figures_that_differ"] = sorted(
                {
                    key
                    for entry, zero_entry in zip(log, zero_log, strict=True)
                    for key in entry
                    if entry[key] != zero_entry.get(key)
                }
            )
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts_here = ["checks", "credit", "kernels", "limits"]
    parser.add_argument("--parts", nargs="+", choices=parts_here, default=parts_here, metavar="PART")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    prepare(torch.get_num_threads())
    tiny, turns = arguments.rehearse, arguments.turns
    parts: dict[str, Callable] = {
        "checks": lambda: checks([128] if tiny else [128, 2048, 16384]),
        "credit": lambda: [
            credit_check(kernel, trust_region, 4, T)
            for T in ([128] if tiny else [128, 2048, 16384])
            for kernel in ("recent", "both")
            for trust_region in ("trace", "token", "weight")
        ],
        "kernels": lambda: kernels(
            2 if tiny else 16, [64, 128] if tiny else [256, 512, 1024, 2048, 4096, 8192, 16384], turns
        ),
        "limits": lambda: limits(2 if tiny else 4),
    }
    result = {
        "command": own_command("benchmarks.cost.on_gpu"),
        "device": torch.cuda.get_device_name() if ON_GPU else processor(),
        "torch": torch.__version__,
        "triton": version("triton") if HAS_TRITON else None,
    }
    for name in arguments.parts:
        try:
            result[name] = parts[name]()
        except FAILURES:
            result[name] = {"error": traceback.format_exc()}
        print(name, json.dumps(result[name]), flush=True)
        if arguments.output:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
