"""Report what a localizer is worth, from finished runs: JSON, tables, a figure.

    python -m benchmarks.localizers                       # the stored runs of the learning curves
    python -m benchmarks.localizers --train               # hours; it goes on where it stopped, then reports
    python -m benchmarks.localizers --runs RUNS --output FOLDER

The hit rates are those of `python -m benchmarks.localizers.hit_rates`.
"""

import argparse
import json
import os
from pathlib import Path

from benchmarks.common.measuring import compact_json
from benchmarks.learning_curves.suite import LOCALIZERS, SEEDS, RunLog, plan, train_missing
from benchmarks.learning_curves.suite import RESULTS as CURVES
from benchmarks.localizers.figure import draw
from benchmarks.localizers.tables import markdown
from benchmarks.localizers.worth import summarize

RESULTS = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=CURVES / "runs.jsonl", help="finished runs")
    parser.add_argument("--hit_rates", type=Path, default=RESULTS / "hit_rates.json", help="measured hit rates")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--train", action="store_true", help="train the runs that are missing first")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that train")
    arguments = parser.parse_args()
    if arguments.train:
        train_missing(plan(["rare"], LOCALIZERS), SEEDS, RunLog(arguments.runs), arguments.workers)
    summary = summarize(json.loads(arguments.hit_rates.read_text()), RunLog(arguments.runs).finished)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "localizers.json").write_text(compact_json(summary))
    (arguments.output / "localizers.md").write_text(markdown(summary))
    draw(summary, arguments.output / "localizers.png")
    print(markdown(summary))


if __name__ == "__main__":
    main()
