r"""Compare the training rewards of several `train.py` runs of a pretrained model.

    for method in grpo grpo_lambda s_trace; do
      python train.py --config recipes/smollm2_cpu.yaml --bf16 true --max_steps 16 --method $method \
        --instruction "Answer in one short sentence." --max_completion_length 48 --output_dir runs/real-$method-0
    done
    python -m benchmarks.real_model runs/real-*

The folders are called `real-<method>-<seed>`. Every problem is a new one, so a reward is that of the policy on problems
which it has not seen. Under reset groups half of the completions continue a failed one: do not compare those rewards
with other methods', but let `evaluate.py --benchmarks reasoning-gym/aiw` measure the models that were saved.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from credit_trl.visualization.curves import smoothed


def read_rewards(folder: Path) -> list[float]:
    """Return the mean reward of each generation batch."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["reward"] for entry in log if entry.get("reward") is not None]


def read_runs(folders: Sequence[Path]) -> dict[str, list[list[float]]]:
    """Return the runs of each method, one for each seed. Raises `ValueError` on a folder of another name."""
    runs: dict[str, list[list[float]]] = {}
    for folder in folders:
        name = re.fullmatch(r"real-(\w+)-(\d+)", folder.name)
        if name is None:
            raise ValueError(f"{folder} is not called real-<method>-<seed>, which says what ran there")
        runs.setdefault(name[1], []).append(read_rewards(folder))
    return runs


def summarize(runs: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """Return for each method and seed the mean reward of the first and of the last quarter of the batches."""
    rows = []
    for method, seeds in runs.items():
        batches = min(map(len, seeds))
        quarter = max(1, batches // 4)
        first, last = (
            [round(fmean(seed[part]), 4) for seed in seeds] for part in (slice(quarter), slice(-quarter, None))
        )
        rows.append(
            {"method": method, "batches": batches, "first_quarter": first, "last_quarter": last, "rewards": seeds}
        )
    return rows


def draw(runs: dict[str, list[list[float]]], path: Path) -> None:
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for index, (method, seeds) in enumerate(runs.items()):
        for number, rewards in enumerate(seeds):
            batches = range(1, len(rewards) + 1)
            axes.plot(batches, rewards, ".", color=f"C{index}", alpha=0.35)
            axes.plot(batches, smoothed(rewards), color=f"C{index}", label=method if number == 0 else None)
    axes.set(xlabel="generation batch", ylabel="mean reward, smoothed")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="output folders of train.py: real-<method>-<seed>")
    output = Path(__file__).with_name("real_model.json")
    parser.add_argument("--output", type=Path, default=output, help=f"JSON file, with a figure beside it; {output}")
    arguments = parser.parse_args()
    try:
        runs = read_runs(arguments.folders)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    rows = summarize(runs)
    command = " ".join(["python -m benchmarks.real_model", *sys.argv[1:]])
    arguments.output.write_text(json.dumps({"command": command, "results": rows}, indent=1) + "\n")
    draw(runs, arguments.output.with_suffix(".png"))
    print(
        "| method | seeds | batches | first quarter, mean and range over seeds | last quarter |\n|---|---|---|---|---|"
    )
    for row in rows:
        parts = [row["first_quarter"], row["last_quarter"]]
        cells = [f"{fmean(part):.3f} ({min(part):.3f} to {max(part):.3f})" for part in parts]
        print(f"| {row['method']} | {len(row['rewards'])} | {row['batches']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
