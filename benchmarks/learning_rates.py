"""How much of the learning curves hangs on the learning rate? The methods ahead of GRPO, and GRPO, at every rate.

    python benchmarks/learning_rates.py               # after learning_curves.py, whose runs it shares
    python benchmarks/learning_rates.py --plot_only   # table and figure of the runs so far

`learning_curves.py` chooses a learning rate on two seeds, which can choose badly: a method may look ahead because GRPO
was given a poor rate. Here each method runs at several rates on the ten reported seeds, with its own knob at the value
that the suite chose, and is compared with GRPO, both at the rate with the best mean pass@1 over these runs. That choice
is made on the seeds that are reported and the intervals leave it out, so it flatters every method, GRPO too; the
suite's own table does not.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from learning_curve_results import mean_interval, share, summarise_method, tuning_score
from learning_curve_run import Run
from learning_curves import (
    LEARNING_RATES,
    LEVELS,
    RESULTS,
    SEEDS,
    Block,
    RunLog,
    best_candidate,
    candidate_runs,
    run_missing,
    worker_processes,
)
from matplotlib.figure import Figure
from trace_kernels import processor

SWEPT = {"rare": ("grpo", "srpo 1x4", "srpo 1x4 furthest")}
NUM_RATES = 3  # the lowest of the suite, where nothing diverges, and the one that it chose


def rates(block: Block, finished: dict[str, dict]) -> list[Run]:
    """A run, of the first seed, at every learning rate that is compared: the suite's common ones and the chosen one."""
    chosen = best_candidate(block, finished)
    if chosen is None:
        raise ValueError(
            f"{block[1]} has not been tuned in {block[0]} yet: "
            f'run `python benchmarks/learning_curves.py --settings {block[0]} --methods "{block[1]}"` first'
        )
    rate, options = chosen
    compared = sorted({*LEARNING_RATES[block[0]][:NUM_RATES], rate})
    return [run for each in compared for run in candidate_runs(block, (each, options), SEEDS[:1])]


def runs_at(block: Block, one: Run) -> list[Run]:
    return candidate_runs(block, (one.learning_rate, one.options), SEEDS)


def wanted(blocks: Sequence[Block], finished: dict[str, dict]) -> Iterator[Run]:
    for block in blocks:
        for one in rates(block, finished):
            yield from runs_at(block, one)


def sweep(block: Block, finished: dict[str, dict]) -> dict[float, dict[int, dict]]:
    """Results by learning rate and seed; none before all have run, since the best of fewer would not compare."""
    swept = {one.learning_rate: runs_at(block, one) for one in rates(block, finished)}
    if not all(run.key() in finished for runs in swept.values() for run in runs):
        return {}
    return {rate: {run.seed: finished[run.key()] for run in runs} for rate, runs in swept.items()}


def best_rate(results: dict[float, dict[int, dict]]) -> float:
    """By the suite's criterion, the mean pass@1 over the run, on all reported seeds."""
    return max(results, key=lambda rate: fmean(tuning_score(result) for result in results[rate].values()))


def summarise(setting: str, finished: dict[str, dict]) -> list[dict[str, Any]]:
    """For each method its pass rate at every learning rate, and how it compares with GRPO, both at their best."""
    sweeps = {method: sweep((setting, method), finished) for method in SWEPT[setting]}
    sweeps = {method: results for method, results in sweeps.items() if results}
    rows = []
    for method, results in sweeps.items():
        best, reference = best_rate(results), sweeps["grpo"]
        compared = summarise_method(results[best], reference[best_rate(reference)], LEVELS[setting])
        chosen = best_candidate((setting, method), finished)
        assert chosen is not None
        rows.append(
            {
                "method": method,
                **chosen[1],
                "chosen_rate": chosen[0],
                "best_rate": best,
                "pass_at_1": {
                    f"{rate:g}": mean_interval([result["pass_at_1"][-1] for result in by_seed.values()])
                    for rate, by_seed in results.items()
                },
                "minus_grpo": compared["pass_at_1_minus_grpo"],
                "p": compared["pass_at_1_p"],
                "catch_up": compared["catch_up"]["completions"],
            }
        )
    return rows


def markdown(setting: str, rows: list[dict[str, Any]]) -> str:
    columns = sorted({rate for row in rows for rate in row["pass_at_1"]}, key=float)
    header = [setting, *columns, "at its best rate, minus GRPO at its", "p", "completions to GRPO's final pass@1"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        cells = [f"{row['pass_at_1'][rate][0]:.3f}" if rate in row["pass_at_1"] else "" for rate in columns]
        cells[columns.index(f"{row['best_rate']:g}")] += " best"
        cells[columns.index(f"{row['chosen_rate']:g}")] += " chosen"
        compared = ["", "", "1"]
        if row["method"] != "grpo":
            difference = "{:+.3f} ({:+.3f} to {:+.3f})".format(*row["minus_grpo"])
            compared = [difference, f"{row['p']:.3f}", share(row["catch_up"])]
        lines.append([row["method"], *cells, *compared])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(summary: dict[str, list[dict[str, Any]]], path: Path) -> None:
    figure = Figure(figsize=(6.5 * len(summary), 4.5), dpi=110, layout="constrained")
    for panel, (setting, rows) in zip(figure.subplots(1, len(summary), squeeze=False)[0], summary.items(), strict=True):
        for index, row in enumerate(rows):
            colour = "black" if row["method"] == "grpo" else f"C{index}"
            shift = 1 + 0.02 * (index - len(rows) / 2)  # error bars side by side
            x = [float(rate) * shift for rate in row["pass_at_1"]]
            value, low, high = zip(*row["pass_at_1"].values(), strict=True)
            error = [
                [v - a for v, a in zip(value, low, strict=True)],
                [b - v for v, b in zip(value, high, strict=True)],
            ]
            panel.errorbar(x, value, yerr=error, color=colour, marker="o", markersize=4, capsize=3, label=row["method"])
            chosen = list(row["pass_at_1"]).index(f"{row['chosen_rate']:g}")
            panel.plot(x[chosen], value[chosen], "o", markersize=11, markerfacecolor="none", color=colour)
        panel.set(xscale="log", xlabel="learning rate (circled: the one that the suite chose)", title=setting)
        panel.set_ylabel("final pass@1, mean and 95% interval over 10 seeds")
        ticks = sorted({float(rate) for row in rows for rate in row["pass_at_1"]})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SWEPT, default=list(SWEPT), help="default: all")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes, of one thread each"
    )
    parser.add_argument("--runs", type=Path, default=RESULTS / "learning_curves_runs.jsonl", help="finished runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--plot_only", action="store_true", help="report the finished runs and train none")
    arguments = parser.parse_args()
    log = RunLog(arguments.runs)
    blocks = [(setting, method) for setting in arguments.settings for method in SWEPT[setting]]
    if not arguments.plot_only:
        total = len(list(wanted(blocks, log.finished)))
        with worker_processes(arguments.workers) as executor:
            run_missing(lambda finished: wanted(blocks, finished), total, log, executor, arguments.workers)
    keys = [run.key() for run in wanted(blocks, log.finished)]
    spent = [log.finished[key]["cpu_seconds"] for key in keys if key in log.finished]
    summary = {setting: summarise(setting, log.finished) for setting in arguments.settings}
    note = f"{len(spent)} runs, some of them the suite's, {sum(spent) / 3600:.2f} core-hours on {processor()}"
    content = {"command": "python benchmarks/learning_rates.py", "note": note, "settings": summary}
    (arguments.output / "learning_rates.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    draw(summary, arguments.output / "learning_rates.png")
    print(note, *(markdown(setting, rows) for setting, rows in summary.items()), sep="\n\n")


if __name__ == "__main__":
    main()
