"""Measure time and peak memory of the trace kernels beside the two obvious ways of writing them.

    python -m benchmarks.cost.trace_kernels --output benchmarks/cost/trace_kernels_cpu.json
    python -m benchmarks.cost.trace_kernels --normalize --forms ours matrix --rows 16 \
        --lengths 128 512 1024 2048 4096 8192 16384 --output benchmarks/cost/trace_kernels_h100.json     # one GPU

- ours:   `credit_trl.traces.eligibility_trace`;
- matrix: the (B, T, T) weights of the definition, times the log ratios;
- loop:   one Python step a token.

The forms take turns within one process, so that a change of the machine's speed meets them all; medians are reported,
and ratios are medians of the ratios within a turn. On a CPU one thread does all, and its own seconds are given, which
other processes disturb least. On a GPU a turn is 20 passes, of which only the last is waited for. Peak memory is what a
first forward and backward pass adds to what is resident (on a GPU: allocated). A form that does not fit into a GPU's
memory has no figures.
"""

import argparse
import ctypes
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from tqdm.auto import tqdm

from benchmarks.common.measuring import processor
from credit_trl.traces.kernels import eligibility_trace

DECAY = 0.99
FORMS = ("ours", "matrix", "loop")
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


TRACES: dict[str, Callable] = {"ours": our_trace, "matrix": matrix_trace, "loop": loop_trace}


def case(form: str, kernel: str, B: int, T: int, device: str, normalize: bool) -> Callable[[], torch.Tensor]:
    """Return one forward and backward pass over B rows of T tokens, the last tenth of every row being padding."""
    generator = torch.Generator().manual_seed(0)
    x = (0.05 * torch.randn(B, T, generator=generator)).to(device).requires_grad_()
    mask = torch.ones(B, T, device=device)
    mask[:, T - T // 10 :] = 0
    gradient = torch.rand(B, T, generator=generator).to(device)

    def step() -> torch.Tensor:
        x.grad = None
        TRACES[form](x, mask, kernel, normalize).backward(gradient)
        return x.grad

    return step


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


def measure(
    forms: Sequence[str], B: int, T: int, device: str, turns: int, normalize: bool, progress: tqdm
) -> list[dict]:
    rows = []
    for kernel in KERNELS:
        steps, peaks, gradients = {}, {}, {}
        for form in forms:
            step = case(form, kernel, B, T, device, normalize)
            try:
                peaks[form], gradients[form] = peak_mebibytes(step, device), step()
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                continue
            steps[form] = step
            torch.testing.assert_close(gradients[form], gradients["ours"], rtol=1e-3, atol=1e-3)
        times: dict[str, list[float]] = {form: [] for form in steps}
        for _ in range(turns):
            for form, step in steps.items():
                # On a CPU a single pass of ours would time the clock, and the others take long.
                repeats = 20 if form == "ours" or (device == "cuda" and form == "matrix") else 1
                times[form].append(seconds(step, device, repeats))
                progress.update()
        for form in forms:
            row: dict = {"kernel": kernel, "form": form, "B": B, "T": T}
            if form in steps:
                ratios = [duration / baseline for duration, baseline in zip(times[form], times["ours"], strict=True)]
                row |= {
                    "median_ms": round(1e3 * median(times[form]), 3),
                    "min_ms": round(1e3 * min(times[form]), 3),
                    "max_ms": round(1e3 * max(times[form]), 3),
                    "times_ours": round(median(ratios), 2),
                    "peak_mib": round(peaks[form], 1),
                }
            else:
                row |= dict.fromkeys(("median_ms", "min_ms", "max_ms", "times_ours", "peak_mib"))
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=4, help="B, the number of completions")
    parser.add_argument("--normalize", action="store_true", help="divide by the sums of the weights")
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=FORMS, metavar="FORM", help="beside ours; default: all of them"
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
        "command": "python " + " ".join(["-m", "benchmarks.cost.trace_kernels", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "decay": DECAY,
        "normalize": arguments.normalize,
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
