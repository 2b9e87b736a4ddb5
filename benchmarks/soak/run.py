"""Run two thousand optimizer steps of every method on the testbed, to see whether a process grows, slows or breaks.

    python -m benchmarks.soak                # what has run is kept: interrupted, it goes on with the next method
    python -m benchmarks.soak --plot_only

Every method trains in a process of its own, each generation batch for two steps, on problems of which the base model
knows some steps only, so that there are failures to the end. It logs and writes checkpoints as users do, keeping two.
After every step the callback reads the resident memory, the open files, the threads and the CPU time of the process.

Slopes are least-squares lines through the means of blocks of 100 steps, without the first two blocks, in which
caches and allocators fill; their 95% intervals come from resampling the blocks. GRPO is TRL's own trainer: what it
shows is not ours.
"""

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import psutil
import torch
from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from benchmarks.common.drawing import TEXT, method_title, new_figure, save
from benchmarks.common.measuring import QUIET, prepare, processor
from benchmarks.common.methods import METHODS
from benchmarks.common.stored import own_command
from benchmarks.learning_curves.run import HARD_OPERATIONS, Setting, sample_problems
from credit_trl.testbed import BASE_MODEL, answer_reward
from credit_trl.testbed.arithmetic import as_dataset
from credit_trl.visualization.curves import COLORS, MARKERS

OUTPUT = Path(__file__).with_name("soak_cpu.json")
# GRPO comes first: the others are compared with it.
SOAKED = ("grpo", "p_trace", "s_trace", "grpo_lambda recent", "grpo_lambda both", "rrpo", "srpo 1x4")
PROBLEMS = Setting(3, 4, num_iterations=2, generations=0, evaluate_every=0, operations=HARD_OPERATIONS)
BLOCK = 100  # steps whose mean is one point
WARMUP_BLOCKS = 2
RESAMPLES = 2000
# What is measured after every step, and its unit.
MEASURED = {
    "resident_memory": "resident memory, MiB",
    "open_files": "open files",
    "threads": "threads",
    "cpu_seconds": "CPU seconds of a step",
}  # quantity -> title of its panel


class Vitals(TrainerCallback):
    """Measure this process after every step, and count the logged numbers that are not finite."""

    def __init__(self, method: str, steps: int):
        self.measured: dict[str, list[float]] = {name: [] for name in MEASURED}
        self.not_finite = 0
        self.process, self.progress = psutil.Process(), tqdm(total=steps, desc=method)

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.measured["cpu_seconds"].append(time.process_time() - self.begun)
        self.measured["resident_memory"].append(self.process.memory_info().rss / 2**20)
        self.measured["open_files"].append(self.process.num_fds())
        self.measured["threads"].append(self.process.num_threads())
        self.progress.update()

    def on_log(self, args, state, control, logs, **kwargs):
        self.not_finite += sum(not math.isfinite(value) for value in logs.values())


def soak(method: str, steps: int) -> dict[str, Any]:
    """Train for `steps` optimizer steps. Return the means of every block, and how many numbers were not finite."""
    prepare()
    chosen, vitals = METHODS[method], Vitals(method, steps)
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        trainer = chosen.make_trainer(
            model,
            answer_reward,
            dict(
                output_dir=folder,
                per_device_train_batch_size=16,
                num_generations=8,
                max_completion_length=6 * PROBLEMS.max_steps + 6,
                num_iterations=PROBLEMS.num_iterations,
                max_steps=steps,
                learning_rate=1e-6,
                lr_scheduler_type="constant",
                use_cpu=True,
                **(QUIET | {"save_strategy": "steps"}),
                save_steps=BLOCK,
                save_total_limit=2,
            ),
            train_dataset=as_dataset(sample_problems(PROBLEMS, 1000, seed=0)),
            processing_class=AutoTokenizer.from_pretrained(BASE_MODEL),
            callbacks=[vitals],
        )
        trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    starts = range(0, steps, BLOCK)
    return {
        "method": method,
        "steps": len(vitals.measured["threads"]),
        "blocks": {
            name: [round(fmean(values[start : start + BLOCK]), 5) for start in starts]
            for name, values in vitals.measured.items()
        },
        "not_finite_logged": vitals.not_finite,
        "not_finite_weights": sum(int((~torch.isfinite(weight)).sum()) for weight in model.parameters()),
        "reward": [round(fmean(rewards[:20]), 4), round(fmean(rewards[-20:]), 4)],  # of the first and last 200 steps
    }


def slope_interval(values: list[float]) -> tuple[float, float, float]:
    """Return the slope of the least-squares line through values that are 1 apart in x, and its 95% interval.

    The ends of the interval are percentiles over resamples of the points.
    """
    y = np.asarray(values)
    drawn = np.random.default_rng(0).integers(0, len(y), (RESAMPLES, len(y)))
    drawn = drawn[(drawn != drawn[:, :1]).any(1)]  # one point drawn over and over has no line
    low, high = np.percentile(_slope(drawn.astype(float), y[drawn]), (2.5, 97.5))
    return float(_slope(np.arange(len(y), dtype=float), y)), float(low), float(high)


def _slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    return (centered * y).sum(-1) / (centered**2).sum(-1)


def slopes(result: dict[str, Any]) -> dict[str, list[float]]:
    """Return slopes per thousand steps after the warm-up, with intervals; for CPU seconds as a share of the mean."""
    rows = {}
    for name, values in result["blocks"].items():
        steady = values[WARMUP_BLOCKS:]
        scale = 1000 / BLOCK / (fmean(steady) if name == "cpu_seconds" else 1)
        rows[name] = [round(scale * value, 4) for value in slope_interval(steady)]
    return rows


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| method | steps | memory, MiB per 1000 steps | memory at the end, MiB | open files, first and last | "
        "threads, first and last | step time, % per 1000 steps | step, CPU s | not finite | reward, first and last |",
        "|" + "---|" * 10,
    ]
    for result in results:
        trend, blocks = slopes(result), result["blocks"]
        memory, seconds = trend["resident_memory"], [100 * value for value in trend["cpu_seconds"]]
        ends = {name: f"{blocks[name][WARMUP_BLOCKS]:.0f}, {blocks[name][-1]:.0f}" for name in blocks}
        cells = (
            result["method"],
            result["steps"],
            f"{memory[0]:+.2f} [{memory[1]:+.2f}, {memory[2]:+.2f}]",
            f"{blocks['resident_memory'][-1]:.0f}",
            ends["open_files"],
            ends["threads"],
            f"{seconds[0]:+.1f} [{seconds[1]:+.1f}, {seconds[2]:+.1f}]",
            f"{fmean(blocks['cpu_seconds'][WARMUP_BLOCKS:]):.3f}",
            result["not_finite_logged"] + result["not_finite_weights"],
            ", ".join(f"{reward:.3f}" for reward in result["reward"]),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


@rc_context(TEXT)
def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw each quantity that was measured, in a panel of its own, over the optimizer steps."""
    figure = new_figure(5.2)
    # Methods whose lines fall on one another are told apart by where their markers stand.
    for axes, (name, title) in zip(figure.subplots(2, 2, sharex=True).flat, MEASURED.items(), strict=True):
        for index, result in enumerate(results):
            values = result["blocks"][name]
            steps = [BLOCK * (position + 1) for position in range(len(values))]
            color = "black" if result["method"] == "grpo" else COLORS[(index - 1) % len(COLORS)]
            axes.plot(
                steps,
                values,
                label=method_title(result["method"]),
                color=color,
                marker=MARKERS[index % len(MARKERS)],
                markevery=(index, len(results)),
                markersize=4,
                linewidth=1,
            )
        axes.axvspan(0, BLOCK * WARMUP_BLOCKS, color="0.9", zorder=0)
        axes.set_title(title)
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"Means of {BLOCK} optimizer steps each; gray: not part of the slopes")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=SOAKED, metavar="METHOD")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file, with a figure beside it; {OUTPUT}")
    parser.add_argument("--plot_only", action="store_true", help="the table and the figure of what has run")
    arguments = parser.parse_args()
    least = (WARMUP_BLOCKS + 2) * BLOCK
    if arguments.steps < least:
        parser.error(
            f"--steps must be at least {least}, got {arguments.steps}: a slope needs two blocks after the warm-up"
        )
    results = json.loads(arguments.output.read_text())["results"] if arguments.output.exists() else []
    done = {(result["method"], result["steps"]) for result in results}
    for method in () if arguments.plot_only else arguments.methods:
        if (method, arguments.steps) in done:
            continue
        # A fresh process for each: what one leaves behind does not count for the next.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            results.append(pool.submit(soak, method, arguments.steps).result())
        content = {
            "command": own_command("benchmarks.soak"),
            "device": processor(),
            "threads": 1,
            "torch": torch.__version__,
            "results": [result | {"slopes_per_1000_steps": slopes(result)} for result in results],
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")
    if not results:
        sys.exit(f"{arguments.output} has no results yet: run without --plot_only")
    print(table(results))
    draw(results, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
