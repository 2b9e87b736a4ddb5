r"""Is a method's lead one of learning rates? Every method at every rate, on the reported seeds, beside GRPO's.

    python -m benchmarks.learning_curves.rates --setting long_reuse --methods grpo s_trace gmpo \
        --output benchmarks/learning_curves/rates_long_reuse.json

Tuning chooses a rate by two seeds, and seeds differ by more than methods. A lead over GRPO that rests on the luck of
GRPO's rate disappears where both train at the same one. Methods keep the options of their own that tuning chose for
them. Runs are shared with the learning curves (`--runs`): what has run there does not run again.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from benchmarks.common.measuring import compact_json, processor
from benchmarks.common.methods import METHODS
from benchmarks.common.stored import own_command
from benchmarks.learning_curves.report import mean_interval, sign_flip_p
from benchmarks.learning_curves.run import Run
from benchmarks.learning_curves.suite import (
    LEARNING_RATES,
    RESULTS,
    SEEDS,
    SETTINGS,
    RunLog,
    best_candidate,
    candidate_runs,
    knob,
    run_missing,
    worker_pool,
)

Grid = dict[str, dict[float, list[Run]]]  # a method's runs at each rate, one for each seed


def grid(setting: str, methods: list[str], rates: list[float], seeds: list[int], finished: dict[str, dict]) -> Grid:
    """Return the runs of every method at every rate, with the options that tuning chose for the method.

    Raises `ValueError` for a method that has such options and whose tuning is not done.
    """
    runs: Grid = {}
    for method in methods:
        block = (setting, method)
        chosen = best_candidate(block, finished) if knob(block) else (0.0, {})
        if chosen is None:
            raise ValueError(f"{method} is not tuned in {setting}: run benchmarks.learning_curves for it first")
        runs[method] = {rate: candidate_runs(block, (rate, chosen[1]), seeds) for rate in rates}
    return runs


def summarize(runs: Grid, finished: dict[str, dict]) -> dict[str, Any]:
    """Return final pass rates by method and rate, and their differences from GRPO's at the same rate and seed.

    `best` compares each method at its own best rate, chosen on the same seeds for all: what tuning on many seeds gives.
    """
    final = {
        method: {rate: [finished[run.key()]["pass_at_1"][-1] for run in row] for rate, row in rates.items()}
        for method, rates in runs.items()
    }
    best = {method: max(rates, key=lambda rate: sum(rates[rate])) for method, rates in final.items()}

    def compared(values: list[float], reference: list[float]) -> dict[str, Any]:
        differences = [ours - theirs for ours, theirs in zip(values, reference, strict=True)]
        return {"minus_grpo": mean_interval(differences), "p": sign_flip_p(differences)}

    return {
        method: {
            "rates": {
                rate: {"pass_at_1": mean_interval(values)}
                | ({} if method == "grpo" else compared(values, final["grpo"][rate]))
                for rate, values in rates.items()
            },
            "options": next(iter(runs[method].values()))[0].options,
            "best_rate": best[method],
            **({} if method == "grpo" else {"best": compared(rates[best[method]], final["grpo"][best["grpo"]])}),
        }
        for method, rates in final.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, required=True, help="GRPO among them")
    parser.add_argument("--rates", nargs="+", type=float, help="default: all that tuning tries in the setting")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs.jsonl", help="finished runs")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--plot_only", action="store_true", help="report the finished runs and train none")
    arguments = parser.parse_args()
    if "grpo" not in arguments.methods:
        parser.error("--methods: grpo must be among them, with which the others are compared")
    log = RunLog(arguments.runs)
    rates = sorted(arguments.rates or LEARNING_RATES[arguments.setting])
    by_rate = grid(arguments.setting, arguments.methods, rates, arguments.seeds, log.finished)
    runs = [run for row in by_rate.values() for of_seeds in row.values() for run in of_seeds]
    if not arguments.plot_only:
        with worker_pool(arguments.workers) as executor:
            run_missing(lambda: runs, len(runs), log, executor, arguments.workers)
    elif missing := sum(run.key() not in log.finished for run in runs):
        parser.error(f"--plot_only: {missing} of {len(runs)} runs have not been trained yet")
    result = {
        "command": own_command("benchmarks.learning_curves.rates"),
        "device": processor(),
        "setting": arguments.setting,
        "seeds": arguments.seeds,
        "methods": summarize(by_rate, log.finished),
    }
    arguments.output.write_text(compact_json(result))
    for method, outcome in result["methods"].items():
        for rate, figures in outcome["rates"].items():
            print(method, rate, figures)
        print(method, "at its best rate", outcome["best_rate"], outcome.get("best"))


if __name__ == "__main__":
    main()
