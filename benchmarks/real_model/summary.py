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
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from benchmarks.common.drawing import GRAY, TEXT, method_title, new_figure, save
from credit_trl.visualization.curves import COLORS, smoothed


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


@rc_context(TEXT)
def draw(runs: dict[str, list[list[float]]], path: Path) -> None:
    """Draw each method beside GRPO in a panel of its own: rewards as dots, smoothed as lines, a line for each seed."""
    compared = [method for method in runs if method != "grpo"] or ["grpo"]
    figure = new_figure(0.7 + 2.2 * math.ceil(len(compared) / 2))
    grid = figure.subplots(math.ceil(len(compared) / 2), 2, sharex=True, sharey=True, squeeze=False)
    for panel, method in zip(grid.flat, compared, strict=False):
        for name, color, style in (("grpo", GRAY, "--"), (method, COLORS[0], "-")):
            for rewards in runs.get(name, []):
                batches = range(1, len(rewards) + 1)
                panel.plot(batches, rewards, ".", color=color, alpha=0.4, markersize=4)
                panel.plot(batches, smoothed(rewards), color=color, linestyle=style)
        panel.set(title=method_title(method), xlabel="generation batch")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.grid(alpha=0.3)
    for panel in grid.flat[len(compared) :]:
        panel.set_visible(False)
    grid[0, 0].set_ylabel("mean reward, smoothed")
    figure.legend(
        handles=[
            Line2D([], [], color=GRAY, linestyle="--", label="GRPO"),
            Line2D([], [], color=COLORS[0], label="the method of the title; a line for each seed"),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="output folders of train.py: real-<method>-<seed>")
    output = Path(__file__).with_name("real_model.json")
    parser.add_argument("--output", type=Path, default=output, help=f"JSON file, with a figure beside it; {output}")
    parser.add_argument("--plot_only", action="store_true", help="draw the figure of --output as it is")
    arguments = parser.parse_args()
    if arguments.plot_only:
        results = json.loads(arguments.output.read_text())["results"]
        draw({row["method"]: row["rewards"] for row in results}, arguments.output.with_suffix(".png"))
        return
    if not arguments.folders:
        parser.error("give the output folders of the runs, or --plot_only")
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
