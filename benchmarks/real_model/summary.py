r"""Compare the training rewards of several `train.py` runs of a pretrained model.

`compare.py` starts such runs and uses these functions. This script reads runs that were started by hand, for example

    for method in grpo grpo_lambda s_trace; do
      python train.py --config recipes/smollm2_cpu.yaml --bf16 true --max_steps 16 --method $method \
        --instruction "Answer in one short sentence." --max_completion_length 48 --output_dir runs/real-$method-0
    done
    python -m benchmarks.real_model runs/real-*

The folders are called `real-<method>-<seed>`. Problems are drawn anew for every batch, so most of a batch's
problems are new to the policy. Under reset groups half of the completions continue a failed one: do not compare those
rewards with other methods', but the pass rates that `compare.py` measures.
"""

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from benchmarks.common.drawing import GRAY, TEXT, method_title, new_figure, save
from benchmarks.common.stored import own_command
from credit_trl.evaluation import bootstrap_interval
from credit_trl.visualization.curves import COLORS, smoothed

REWARD = re.compile(r"'reward': '([^']+)'")
PASS_RATE = re.compile(r"pass rate (before|after) training: ([\d.]+)")


class Log(NamedTuple):
    """Hold what a run has logged so far."""

    rewards: list[float]  # mean reward of each generation batch
    pass_rates: dict[str, float]  # "before" and "after"
    last_line: str  # at most 300 characters


def read_log(path: Path) -> Log:
    """Read what `train.py --disable_tqdm true` has printed so far."""
    text = path.read_text(errors="replace").replace("\r", "\n").strip()
    rates = {when: float(rate) for when, rate in PASS_RATE.findall(text)}
    return Log([float(reward) for reward in REWARD.findall(text)], rates, text.rpartition("\n")[2][:300])


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


def interval(rewards: Sequence[Sequence[float]]) -> list[float]:
    """Return the ends of the 95% bootstrap interval of the mean over the batches of all seeds."""
    low, high = bootstrap_interval(np.concatenate([np.asarray(seed) for seed in rewards]))
    return [round(float(low), 4), round(float(high), 4)]


def summarize(runs: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """Return for each method and seed the mean reward of the first and of the last quarter of the batches.

    Each quarter has an interval of its mean over the batches of all seeds: how it would vary with other problems, and
    not with other seeds.
    """
    rows = []
    for method, seeds in runs.items():
        batches = min(map(len, seeds))
        quarter = max(1, batches // 4)
        row: dict[str, Any] = {"method": method, "batches": batches}
        for name, part in (("first_quarter", slice(quarter)), ("last_quarter", slice(-quarter, None))):
            row[name] = [round(fmean(seed[part]), 4) for seed in seeds]
            row[f"{name}_interval"] = interval([seed[part] for seed in seeds])
        rows.append(row | {"rewards": seeds})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table in Markdown of what `summarize` returns, with the pass rates of each seed if they are there."""
    names = {
        "first_quarter": "first quarter, mean and 95% interval", "last_quarter": "last quarter",
        "pass_rate_before": "pass rate before, each seed", "pass_rate_after": "after",
    }  # fmt: skip
    names = {name: title for name, title in names.items() if name in rows[0]}
    lines = [f"| method | seeds | batches | {' | '.join(names.values())} |", "|---" * (3 + len(names)) + "|"]
    for row in rows:
        cells = [row["method"], str(len(row["rewards"])), str(row["batches"])]
        for name in names:
            if name.endswith("quarter"):
                cells.append("{:.3f} ({:.3f} to {:.3f})".format(fmean(row[name]), *row[f"{name}_interval"]))
            else:
                cells.append(", ".join("none" if rate is None else f"{rate[0]:.3f}" for rate in row[name]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rate_interval(rate: float, count: int) -> list[float]:
    """Return the ends of Wilson's 95% interval of a rate that was measured on `count` problems, once each."""
    z = 1.96
    center = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (rate * (1 - rate) / count + z**2 / (4 * count**2)) ** 0.5
    return [round(center - half, 4), round(center + half, 4)]


def collect(logs: dict[str, Log], died: dict[str, int], eval_size: int) -> dict[str, Any]:
    """Return what the runs came to: the rows of `summarize` with pass rates, and the runs that are left out.

    The runs are called `real-<method>-<seed>`; `died` has the exit status of those that failed. A pass rate comes with
    the ends of its 95% interval over the held-out problems, and is None where a run did not get so far.
    """
    kept = {name: log for name, log in logs.items() if log.rewards and name not in died}
    methods: dict[str, dict[str, Log]] = {}
    for name, log in kept.items():
        methods.setdefault(name.split("-")[1], {})[name] = log

    rows = summarize({method: [log.rewards for log in runs.values()] for method, runs in methods.items()})
    for row in rows:
        row["runs"] = list(methods[row["method"]])
        for when in ("before", "after"):
            rates = [kept[name].pass_rates.get(when) for name in row["runs"]]
            row[f"pass_rate_{when}"] = [
                None if rate is None else [rate, *rate_interval(rate, eval_size)] for rate in rates
            ]
    left_out = [
        {"run": name, "exit_status": died.get(name), "batches": len(log.rewards), "last_line": log.last_line}
        for name, log in logs.items()
        if name not in kept
    ]
    return {"results": rows, "left_out": left_out}


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
    command = own_command("benchmarks.real_model")
    arguments.output.write_text(json.dumps({"command": command, "results": rows}, indent=1) + "\n")
    draw(runs, arguments.output.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
