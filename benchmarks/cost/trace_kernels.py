"""Measure time and peak memory of the trace kernels beside other ways of writing them.

    python -m benchmarks.cost.trace_kernels --output benchmarks/cost/trace_kernels_cpu.json

- ours:       `credit_trl.traces.eligibility_trace`, which is one GPU kernel each way where Triton is installed;
- operations: the same by PyTorch's operations, as where there is no Triton;
- matrix:     the (B, T, T) weights of the definition, times the log ratios;
- loop:       one Python step a token.

The forms take turns within one process, so that a change of the machine's speed meets them all; medians are reported,
and ratios are medians of the ratios within a turn. On a CPU one thread does all, and its own seconds are given, which
other processes disturb least. On a GPU a turn is 20 passes (fewer where a matrix takes long), of which only the last is
waited for. Forward and backward passes are timed together, and each alone. Peak memory is what a first forward and
backward pass adds to what is resident (on a GPU: allocated). The error is the largest of a trace or gradient beside the
loop's in float64 on the CPU, divided by the largest of these. On a GPU, launches are the GPU kernels of both passes,
and GPU time is the sum of their durations. A form that does not fit into a GPU's memory has no figures.
"""

import argparse
import ctypes
import json
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from tqdm.auto import tqdm

from benchmarks.common.measuring import processor
from benchmarks.common.stored import own_command
from credit_trl.traces import kernels
from credit_trl.traces.kernels import eligibility_trace

DECAY = 0.99
FORMS = ("ours", *(["operations"] if kernels.HAS_TRITON else []), "matrix", "loop")
FIGURES = (
    "median_ms", "min_ms", "max_ms", "forward_ms", "backward_ms", "times_ours", "peak_mib", "relative_error",
    "launches", "gpu_ms",
)  # fmt: skip
KERNELS = ("recent", "both")


def matrix_trace(x: torch.Tensor, mask: torch.Tensor, kernel: str, normalize: bool) -> torch.Tensor:
    clock = mask.cumsum(-1)
    weights = torch.pow(DECAY, (clock.unsqueeze(2) - clock.unsqueeze(1)).clamp_(min=0))
    if kernel == "both":
        weights = torch.maximum(weights, torch.pow(DECAY, clock.unsqueeze(1) - 1))
    weights = weights.tril_() * mask.unsqueeze(1)
    if normalize:
        weights /= weights.sum(2, keepdim=True).clamp_(min=torch.finfo(weights.dtype).tiny)
    return torch.bmm(weights, (x * mask).unsqueeze(2)).squeeze(2) * mask


def loop_trace(x: torch.Tensor, mask: torch.Tensor, kernel: str, normalize: bool) -> torch.Tensor:
    """Trace rows whose loss tokens come first, as here: then the clock is the position."""
    if normalize:
        return loop_trace(x, mask, kernel, False) / loop_trace(mask, mask, kernel, False).clamp(min=1e-30)
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


def our_trace(x: torch.Tensor, mask: torch.Tensor, kernel: str, normalize: bool) -> torch.Tensor:
    return eligibility_trace(x, mask, decay=DECAY, kernel=kernel, normalize=normalize)


def operations_trace(x: torch.Tensor, mask: torch.Tensor, kernel: str, normalize: bool) -> torch.Tensor:
    before, kernels.HAS_TRITON = kernels.HAS_TRITON, False
    try:
        return our_trace(x, mask, kernel, normalize)
    finally:
        kernels.HAS_TRITON = before


TRACES: dict[str, Callable] = {
    "ours": our_trace, "operations": operations_trace, "matrix": matrix_trace, "loop": loop_trace,
}  # fmt: skip


def case(
    form: str, kernel: str, B: int, T: int, device: str, normalize: bool, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], torch.Tensor], Callable[[torch.Tensor], torch.Tensor], Callable[[], torch.Tensor]]:
    """Return three passes over B rows of T tokens, of which the last tenth is padding.

    They are the forward pass, which returns a trace, the backward pass, from a trace to the gradient, and both.
    """
    generator = torch.Generator().manual_seed(0)
    x = (0.05 * torch.randn(B, T, generator=generator)).to(device, dtype).requires_grad_()
    mask = torch.ones(B, T, device=device, dtype=dtype)
    mask[:, T - T // 10 :] = 0
    gradient = torch.rand(B, T, generator=generator).to(device, dtype)

    def forward() -> torch.Tensor:
        return TRACES[form](x, mask, kernel, normalize)

    def backward(z: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(z, x, gradient, retain_graph=True)[0]

    def both_ways() -> torch.Tensor:
        x.grad = None
        forward().backward(gradient)
        return x.grad

    return forward, backward, both_ways


def seconds(step: Callable[[], torch.Tensor], device: str, repeats: int) -> float:
    """Return wall seconds a pass on a GPU, and seconds of the one thread on a CPU."""
    clock = time.process_time
    if device == "cuda":
        clock = time.perf_counter
        torch.cuda.synchronize()
    start = clock()
    for _ in range(repeats):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / repeats


def peak_mebibytes(step: Callable[[], torch.Tensor], device: str) -> float:
    """Return the MiB that a first pass adds: to the allocator's peak on a GPU, else to the process's resident peak."""
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


def launches(run: Callable) -> dict:
    """Count the kernels that a GPU is given, and add up their milliseconds. There is nothing to count on a CPU."""
    if not torch.cuda.is_available():
        return {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    milliseconds = sum(event.time_range.elapsed_us() for event in kernels) / 1e3
    return {"launches": len(kernels), "gpu_ms": round(milliseconds, 4)}


def relative_error(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float(f"{(result.detach().cpu() - exact.detach()).abs().max() / exact.detach().abs().max():.2g}")


def measure(
    forms: Sequence[str], B: int, T: int, device: str, turns: int, normalize: bool, progress: tqdm
) -> list[dict]:
    rows = []
    for kernel in KERNELS:
        passes, figures = {}, {form: dict.fromkeys(FIGURES) for form in forms}
        forward, _, both_ways = case("loop", kernel, B, T, "cpu", normalize, torch.float64)
        exact = forward().detach(), both_ways()
        for form in forms:
            forward, backward, both_ways = case(form, kernel, B, T, device, normalize)
            try:
                peak = peak_mebibytes(both_ways, device)
                errors = [relative_error(run(), truth) for run, truth in zip((forward, both_ways), exact, strict=True)]
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                continue
            assert all(error < 1e-3 for error in errors), (
                f"{form} of {kernel} differs from the loop at T = {T}: {errors}"
            )
            passes[form] = forward, backward, both_ways
            figures[form] |= {"peak_mib": round(peak, 1), "relative_error": max(errors)} | launches(both_ways)
        times: dict[str, list[tuple[float, ...]]] = {form: [] for form in passes}
        for _ in range(turns):
            for form, (forward, backward, both_ways) in passes.items():
                # On a CPU a single pass of ours would time the clock, and the others take long.
                repeats = {"ours": 20, "operations": 20, "matrix": min(20, 2**15 // T) if device == "cuda" else 1}.get(
                    form, 1
                )
                both, alone = (seconds(run, device, repeats) for run in (both_ways, forward))
                times[form].append((both, alone, seconds(partial(backward, forward()), device, repeats)))
                progress.update()
        for form in passes:
            columns = list(zip(*times[form], strict=True))
            ratios = [duration / baseline for duration, (baseline, *_) in zip(columns[0], times["ours"], strict=True)]
            medians = zip(("median_ms", "forward_ms", "backward_ms"), columns, strict=True)
            figures[form] |= {name: round(1e3 * median(column), 3) for name, column in medians} | {
                "min_ms": round(1e3 * min(columns[0]), 3),
                "max_ms": round(1e3 * max(columns[0]), 3),
                "times_ours": round(median(ratios), 2),
            }
        rows += [{"kernel": kernel, "form": form, "B": B, "T": T} | figures[form] for form in forms]
    return rows


def print_table(rows: Sequence[dict]) -> None:
    columns = ("kernel", "form", "T", *FIGURES)
    print("|", " | ".join(columns), "|\n" + "|---" * len(columns) + "|")
    for row in rows:
        print("|", " | ".join(str(row[column]) for column in columns), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=4, help="B, the number of completions")
    parser.add_argument("--normalize", action="store_true", help="divide by the sums of the weights")
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=TRACES,
        default=FORMS,
        metavar="FORM",
        help="beside ours; default: all that differ here",
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384], help="T, in tokens")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    forms = ["ours", *(form for form in arguments.forms if form != "ours")]
    total = len(arguments.lengths) * len(KERNELS) * len(forms) * arguments.turns
    torch.set_num_threads(1)
    with tqdm(total=total, desc="trace kernels") as progress:
        rows = []
        for T in arguments.lengths:
            rows += measure(forms, arguments.rows, T, arguments.device, arguments.turns, arguments.normalize, progress)
    ours = {(row["kernel"], row["T"]): row["median_ms"] for row in rows if row["form"] == "ours"}
    shortest, longest = arguments.lengths[-2:] if len(arguments.lengths) > 1 else arguments.lengths * 2
    growth = {kernel: round(ours[kernel, longest] / ours[kernel, shortest], 2) for kernel in KERNELS}
    result = {
        "command": own_command("benchmarks.cost.trace_kernels"),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "decay": DECAY,
        "normalize": arguments.normalize,
        "growth": {"from_T": shortest, "to_T": longest, "time_ratio": growth},
        "rows": rows,
    }
    print_table(rows)
    print(f"time at T = {longest} over T = {shortest}: {growth}")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
