"""Time and peak memory of the trace kernels, forward and backward, beside the two obvious ways of writing them.

    python -m benchmarks.cost.trace_kernels --output benchmarks/cost/trace_kernels_cpu.json

- ours:   `credit_trl.traces.eligibility_trace`;
- matrix: the (B, T, T) weights of the definition, times the log ratios;
- loop:   one Python step a token.

The forms take turns within one process, so that a change of the machine's speed meets them all; medians are reported,
and ratios are medians of the ratios within a turn. Peak memory is what a first forward and backward pass adds to what
is resident (on a GPU: allocated).
"""

import argparse
import ctypes
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from tqdm.auto import tqdm

from benchmarks.common.measuring import processor
from credit_trl.traces.kernels import eligibility_trace

DECAY = 0.99
FORMS = ("ours", "matrix", "loop")
KERNELS = ("recent", "both")


def matrix_trace(x: torch.Tensor, mask: torch.Tensor, kernel: str) -> torch.Tensor:
    clock = mask.cumsum(-1)
    weights = torch.pow(DECAY, (clock.unsqueeze(2) - clock.unsqueeze(1)).clamp_(min=0))
    if kernel == "both":
        weights = torch.maximum(weights, torch.pow(DECAY, clock.unsqueeze(1) - 1))
    weights = weights.tril_() * mask.unsqueeze(1)
    return torch.bmm(weights, (x * mask).unsqueeze(2)).squeeze(2) * mask


def loop_trace(x: torch.Tensor, mask: torch.Tensor, kernel: str) -> torch.Tensor:
    """For rows whose loss tokens come first, as here: then the clock is the position."""
    recent, earliest, traces = [], [], []
    for t in range(x.shape[1]):
        value = x[:, t] * mask[:, t]
        recent.append(value + (DECAY * recent[-1] if t else 0))
        trace = recent[-1]
        if kernel == "both":
            earliest.append(DECAY**t * value + (earliest[-1] if t else 0))
            half = (t + 1) // 2
            trace = trace + (earliest[half - 1] - DECAY ** (t - half + 1) * recent[half - 1] if t else 0)
        traces.append(trace)
    return torch.stack(traces, dim=1) * mask


def our_trace(x: torch.Tensor, mask: torch.Tensor, kernel: str) -> torch.Tensor:
    return eligibility_trace(x, mask, decay=DECAY, kernel=kernel)


TRACES: dict[str, Callable] = {"ours": our_trace, "matrix": matrix_trace, "loop": loop_trace}


def case(form: str, kernel: str, B: int, T: int, device: str) -> Callable[[], torch.Tensor]:
    """One forward and backward pass over B rows of T tokens, the last tenth of every row being padding."""
    generator = torch.Generator().manual_seed(0)
    x = (0.05 * torch.randn(B, T, generator=generator)).to(device).requires_grad_()
    mask = torch.ones(B, T, device=device)
    mask[:, T - T // 10 :] = 0

    def step() -> torch.Tensor:
        x.grad = None
        TRACES[form](x, mask, kernel).exp().sum().backward()
        return x.grad

    return step


def seconds(step: Callable[[], torch.Tensor], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mebibytes(step: Callable[[], torch.Tensor], device: str) -> float:
    """What a first pass adds to the memory in use: the allocator's peak on a GPU, the process's resident peak else."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # Linux: give back what is free, so that it cannot be reused unseen,
    Path("/proc/self/clear_refs").write_text("5")  # and forget the peak so far
    before = resident_mebibytes("VmRSS")
    step()
    return resident_mebibytes("VmHWM") - before


def resident_mebibytes(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 2**10


def measure(B: int, T: int, device: str, turns: int, progress: tqdm) -> list[dict]:
    rows = []
    for kernel in KERNELS:
        steps = {form: case(form, kernel, B, T, device) for form in FORMS}
        peaks = {form: peak_mebibytes(step, device) for form, step in steps.items()}
        gradients = {form: step() for form, step in steps.items()}
        for form in FORMS[1:]:
            torch.testing.assert_close(gradients[form], gradients["ours"], rtol=1e-3, atol=1e-3)
        times: dict[str, list[float]] = {form: [] for form in FORMS}
        for _ in range(turns):
            for form in FORMS:
                repeats = 20 if form == "ours" else 1  # a single short pass would time the clock
                times[form].append(sum(seconds(steps[form], device) for _ in range(repeats)) / repeats)
                progress.update()
        for form in FORMS:
            rows.append(
                {
                    "kernel": kernel,
                    "form": form,
                    "B": B,
                    "T": T,
                    "median_ms": round(1e3 * median(times[form]), 3),
                    "min_ms": round(1e3 * min(times[form]), 3),
                    "max_ms": round(1e3 * max(times[form]), 3),
                    "times_ours": round(median(a / b for a, b in zip(times[form], times["ours"], strict=True)), 2),
                    "peak_mib": round(peaks[form], 1),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=4, help="B, the number of completions")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384], help="T, in tokens")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    total = len(arguments.lengths) * len(KERNELS) * len(FORMS) * arguments.turns
    with tqdm(total=total, desc="trace kernels") as progress:
        rows = []
        for T in arguments.lengths:
            rows += measure(arguments.rows, T, arguments.device, arguments.turns, progress)
    ours = {(row["kernel"], row["T"]): row["median_ms"] for row in rows if row["form"] == "ours"}
    shortest, longest = arguments.lengths[-2:] if len(arguments.lengths) > 1 else arguments.lengths * 2
    growth = {kernel: round(ours[kernel, longest] / ours[kernel, shortest], 2) for kernel in KERNELS}
    result = {
        "command": "python " + " ".join(["-m", "benchmarks.cost.trace_kernels", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "decay": DECAY,
        "growth": {"from_T": shortest, "to_T": longest, "time_ratio": growth},
        "rows": rows,
    }
    print("| kernel | form | T | median ms | times ours | peak MiB |\n|---|---|---|---|---|---|")
    for row in rows:
        print("| {kernel} | {form} | {T} | {median_ms} | {times_ours} | {peak_mib} |".format(**row))
    print(f"time at T = {longest} over T = {shortest}: {growth}")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
