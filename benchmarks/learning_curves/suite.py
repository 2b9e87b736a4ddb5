r"""Do the methods help on the testbed? Learning curves of every method, tuned on equal terms, on seeds of their own.

    python -m benchmarks.learning_curves                  # everything; interrupted, it goes on where it stopped
    python -m benchmarks.learning_curves --plot_only      # tables and figures of the runs so far
    python -m benchmarks.learning_curves --settings long --methods grpo "srpo 1x4" --seeds 0 1 2
    python -m benchmarks.learning_curves --settings long_reuse --methods grpo s_trace --seeds {10..29} \
        --output benchmarks/learning_curves/fresh_seeds/long_reuse   # what came out ahead, once more

Protocol. Every method trains on the same problems of the same seeds (`grpo in fours` on twice as many) and on equally
many completions. Each gets five candidates a setting on `TUNING_SEEDS`: four learning rates, then the other value of
its own knob (`knob`) at the best of them, or one more learning rate where it has no knob. The candidate with the
best mean pass@1 over the run wins, and is reported on other seeds. All else is the method's default (`methods.py`).
Intervals are 95% percentile bootstrap intervals over seeds, which with ten of them cover about 90%; p is exact, of
all ways to flip the signs of the seeds' differences from GRPO. Both are for each method on its own: of fifty
comparisons, two or three come out below p = 0.05 by chance. So the most interesting of what came out ahead runs once
more, as it was tuned, on twenty fresh seeds.

Pass rates are exact: the probability that the policy writes the right solution, by one forward pass over it, on 128
held-out problems that are the same for all. Solutions whose errors cancel get the reward and count as failures here.

Settings. `short`: 4 to 6 steps. `long`: 12 steps, on policy. `long_reuse`: the same problems, each batch used for four
optimizer steps, so that ratios leave 1 and clips fire. On policy, GMPO is GSPO, and traces on the advantage are traces
on the ratio (the gradients are equal): these run under `long_reuse` only. `rare`: 16 steps of facts of which the base
model knows fewer, so that one solution in forty is right. `wide` is the longer setting: 100 generation batches of 10
steps, over four times as many facts as the others; `wide_reuse` trains on each batch twice, in two mini-batches.

Where credit matters: `rare`. Most groups of completions are all wrong there and say nothing, and those that are not
spread what one right answer says over sixteen steps. `chain_signal.py` has it in figures: of six uncertain steps, a
group of 8 says something once in 16 times, a group of 4 that continues the furthest of four failures once in 5. With
two uncertain steps, as in `short`, it is the other way round.
"""

import argparse
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.common.measuring import compact_json, processor
from benchmarks.common.methods import METHODS
from benchmarks.common.stored import own_command
from benchmarks.learning_curves.figures import AXES, draw_setting, figure_path
from benchmarks.learning_curves.report import markdown, summarize_method, tuning_score
from benchmarks.learning_curves.run import HARD_OPERATIONS, WIDE_OPERATIONS, Run, Setting, prepare_worker, train

RESULTS = Path(__file__).parent
SETTINGS = {
    "short": Setting(min_steps=4, max_steps=6, num_iterations=1, generations=16, evaluate_every=2),
    "long": Setting(min_steps=12, max_steps=12, num_iterations=1, generations=16, evaluate_every=2),
    "long_reuse": Setting(min_steps=12, max_steps=12, num_iterations=4, generations=8, evaluate_every=1),
    "rare": Setting(16, 16, num_iterations=1, generations=20, evaluate_every=4, operations=HARD_OPERATIONS),
    "wide": Setting(10, 10, num_iterations=1, generations=100, evaluate_every=5, operations=WIDE_OPERATIONS),
    "wide_reuse": Setting(10, 10, 2, generations=100, evaluate_every=5, operations=WIDE_OPERATIONS, mini_batches=2),
}
# Pass rates whose first crossings are compared, beside the mean with which GRPO ends.
LEVELS = {"short": (0.7,), "long": (0.4,), "long_reuse": (0.3,), "rare": (0.1,), "wide": (0.3,), "wide_reuse": (0.3,)}

# GRPO learns slowly at the lowest of four and less, or in `rare` unlearns, at the highest. The last one is for methods
# without a knob.
LEARNING_RATES = dict.fromkeys(SETTINGS, (7e-05, 0.00012, 0.0002, 0.00034, 0.00015))
LEARNING_RATES["rare"] = LEARNING_RATES["wide"] = (4e-5, 7e-5, 1.2e-4, 2e-4, 9e-5)
LEARNING_RATES["wide_reuse"] = (2e-5, 4e-5, 7e-5, 1.2e-4, 5e-5)
# Variants of the traces by where their credit goes. On policy, "own gradient" is GRPO on the eligible tokens alone.
# So it runs under `long_reuse` only.
CREDIT = tuple(f"{name} {credit}" for credit in ("own gradient", "unnormalized") for name in ("p_trace", "s_trace"))
# Experiments that could refute an explanation of a result, and variants of the traces. They have tables of their own,
# and no panel in a figure.
VARIANTS = (
    *CREDIT,
    *("p_trace 0.5", "s_trace 0.5", "cumulative"),
    *("grpo unclipped", "grpo epsilon 0.1", "grpo two-sided", "grpo top entropy"),
    *("srpo 1x4 first step", "grpo in fours", "grpo in two fours"),
)
# The value of its own knob that a method tries beside its default, at the learning rate that did best.
KNOBS: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(("p_trace", "s_trace", *CREDIT), ("trace_lambda", 0.9)),
    **{name: ("trace_lambda", 0.9) for name in METHODS if name.startswith("grpo_l")},
    **{name: ("reset_offset", 1) for name in METHODS if name.startswith("srpo") and name != "srpo 1x4 first step"},
    "srpo 1x4 s_trace": ("trace_lambda", 0.9),
}
# The knob of reset methods in the longer settings: a mean over the batch's tokens, in which short continuations weigh
# no more than long ones, in place of the paper's mean over each completion.
LOSS_KNOB = ("loss_type", "dapo")
NUM_CANDIDATES = 5
TUNING_SEEDS = (1000, 1001)
SEEDS = tuple(range(10))
LONGER = ("wide", "wide_reuse")
LONGER_SEEDS = tuple(range(6))  # a run there takes as long as four elsewhere

TRACES = ("s_trace", "grpo_lambda recent")
RESETS = ("srpo 1x4", "srpo 1x4 oracle")
FURTHEST = ("srpo 1x4 furthest", "srpo 1x4 oracle furthest")
# What matters most comes first. Not everything everywhere: each setting has what is of interest in it.
SUITE = (
    ("long", ("grpo", *RESETS, *TRACES)),
    ("rare", ("grpo", *FURTHEST, *RESETS)),
    ("short", ("grpo", *RESETS)),
    ("rare", (*TRACES, "rrpo")),
    ("long_reuse", ("grpo", *TRACES, "gspo", "gmpo", "grpo_lambda advantage", "grpo_lambda both advantage")),
    ("long_reuse", ("srpo 1x4",)),
    ("long", ("rrpo", "srpo 2x4", "srpo 1x8", "srpo 1x4 s_trace", "p_trace")),
    ("long_reuse", ("grpo_lambda both", "p_trace", "srpo 1x4 s_trace")),
    ("rare", ("grpo floored", "grpo_lambda recent unfloored")),
    ("long", ("srpo 2x4 oracle", "srpo 1x8 oracle", "grpo in fours")),
    ("long_reuse", ("grpo top entropy", "grpo unclipped", "grpo epsilon 0.1", "grpo two-sided")),
    ("long", ("srpo 1x4 first step", "grpo in two fours")),
    ("long_reuse", ("s_trace own gradient", "p_trace own gradient", "cumulative", "s_trace unnormalized")),
    ("long_reuse", ("p_trace unnormalized", "s_trace 0.5", "p_trace 0.5")),
    ("long", ("p_trace unnormalized", "s_trace unnormalized", "p_trace 0.5", "s_trace 0.5")),
    ("wide", ("grpo", "s_trace 0.9", "srpo 1x4 oracle", "s_trace 0.99", "srpo 1x4", "grpo_lambda recent")),
    ("wide_reuse", ("grpo", "s_trace 0.9", "gmpo")),
    ("wide", ("srpo 1x4 oracle furthest", "rrpo", "srpo 1x4 prm 500", "srpo 1x4 votes 3", "srpo 1x4 s_trace")),
    ("wide", ("grpo floored", "grpo_lambda recent unfloored")),
    ("wide_reuse", ("s_trace 0.99", "grpo_lambda recent", "srpo 1x4 oracle", "srpo 1x4", "rrpo", "srpo 1x4 s_trace")),
)

# Methods that `benchmarks/localizers` trains in `rare` and reports: SRPO by who names the wrong step.
LOCALIZERS = tuple(name for name in METHODS if re.search(r" (oracle 0|votes|prm)", name))

Block = tuple[str, str]  # a setting and a method: one tuning and the reported runs


def plan(settings: Sequence[str] | None, methods: Sequence[str] | None) -> list[Block]:
    """Return the suite, or the settings and methods asked for; a named method runs in each of the settings."""
    if methods:
        return [(setting, method) for setting in settings or SETTINGS for method in methods]
    return [(setting, method) for setting, names in SUITE if setting in (settings or SETTINGS) for method in names]


def knob(block: Block) -> tuple[str, Any] | None:
    """Return the option of its own that a method tunes in a setting and the value to try; None where it has none."""
    setting, method = block
    if setting in LONGER and method.startswith(("srpo", "rrpo")):
        return LOSS_KNOB
    return KNOBS.get(method)


def reported_seeds(setting: str, seeds: Sequence[int] | None) -> Sequence[int]:
    """Return the seeds asked for, or those that a setting is reported on."""
    return seeds or (LONGER_SEEDS if setting in LONGER else SEEDS)


Candidate = tuple[float, dict[str, Any]]  # a learning rate, and the method's own options


def candidates(block: Block, finished: dict[str, dict]) -> list[Candidate]:
    """Return a method's five candidates for tuning. The last one is known once the others have run."""
    *first, last = [(rate, {}) for rate in LEARNING_RATES[block[0]]]
    own = knob(block)
    if own is None:
        return [*first, last]
    best = _best(block, first, finished)
    return first if best is None else [*first, (best[0], dict([own]))]


def candidate_runs(block: Block, candidate: Candidate, seeds: Iterable[int]) -> list[Run]:
    setting, method = block
    return [Run(setting, SETTINGS[setting], method, *candidate, seed) for seed in seeds]


def tuning_runs(block: Block, finished: dict[str, dict]) -> list[list[Run]]:
    """Return the runs of every candidate known so far, one for each tuning seed."""
    return [candidate_runs(block, candidate, TUNING_SEEDS) for candidate in candidates(block, finished)]


def _best(block: Block, among: list[Candidate], finished: dict[str, dict]) -> Candidate | None:
    """Return the candidate with the best mean score over the tuning seeds, the first of equals; None until all ran."""
    runs = [candidate_runs(block, candidate, TUNING_SEEDS) for candidate in among]
    if not all(run.key() in finished for seeds in runs for run in seeds):
        return None
    scores = [fmean(tuning_score(finished[run.key()]) for run in seeds) for seeds in runs]
    return among[scores.index(max(scores))]


def best_candidate(block: Block, finished: dict[str, dict]) -> Candidate | None:
    """Return the candidate that tuning chose; None before every candidate has run."""
    among = candidates(block, finished)
    return _best(block, among, finished) if len(among) == NUM_CANDIDATES else None


def reported_runs(block: Block, seeds: Sequence[int] | None, finished: dict[str, dict]) -> list[Run]:
    """Return the runs of the chosen candidate; an empty list before it is chosen. Without `seeds`, the setting's."""
    chosen = best_candidate(block, finished)
    return [] if chosen is None else candidate_runs(block, chosen, reported_seeds(block[0], seeds))


def known_runs(block: Block, seeds: Sequence[int] | None, finished: dict[str, dict]) -> list[Run]:
    """Return the runs of a block that are known so far: which ones follow depends on the results of the first."""
    tuning = [run for runs in tuning_runs(block, finished) for run in runs]
    return tuning + reported_runs(block, seeds, finished)


def suite_runs(blocks: Sequence[Block], seeds: Sequence[int] | None, finished: dict[str, dict]) -> Iterator[Run]:
    """Yield all runs that are known to be needed, the most important ones first."""
    for block in blocks:
        yield from known_runs(block, seeds, finished)


class RunLog:
    """Keep finished runs in a JSON lines file, one write each: an interruption loses only the runs under way."""

    def __init__(self, path: Path):
        self.path = path
        content = path.read_bytes() if path.exists() else b""
        self.whole = content.rfind(b"\n") + 1  # what follows is a write that was cut off, or one under way
        entries = map(json.loads, content[: self.whole].splitlines())
        self.finished: dict[str, dict] = {entry["key"]: entry["result"] for entry in entries}

    def drop_what_was_cut_off(self) -> None:
        """Drop a last line that was cut off. Call it before the first append, while no other process writes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        os.truncate(self.path, self.whole)

    def append(self, run: Run, result: dict[str, Any]) -> None:
        line = json.dumps({"key": run.key(), **asdict(run), "result": result})
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode() + b"\n")
            os.fsync(file.fileno())
        self.finished[run.key()] = result


@contextmanager
def worker_pool(workers: int) -> Iterator[Executor]:
    """Start `workers` processes of one thread each."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=prepare_worker) as executor:
        yield executor


def train_missing(blocks: Sequence[Block], seeds: Sequence[int] | None, log: RunLog, workers: int) -> None:
    """Train what `log` lacks of the blocks, `workers` runs at a time."""
    total = sum(NUM_CANDIDATES * len(TUNING_SEEDS) + len(reported_seeds(setting, seeds)) for setting, _ in blocks)
    with worker_pool(workers) as executor:
        run_missing(lambda: suite_runs(blocks, seeds, log.finished), total, log, executor, workers)


def run_missing(
    known: Callable[[], Iterable[Run]],
    total: int,
    log: RunLog,
    executor: Executor,
    workers: int,
    train: Callable[[Run], dict[str, Any]] = train,
) -> None:
    """Train what `log` lacks of the runs that `known` returns. Only the process that calls this writes to the log.

    `known` is asked again after each run, since which runs follow may depend on results; in the end they are `total`.
    """
    log.drop_what_was_cut_off()
    done = sum(run.key() in log.finished for run in known())
    under_way: dict[Future, Run] = {}
    with tqdm(total=total, initial=done, unit="run") as progress:
        while True:
            busy = {run.key() for run in under_way.values()}
            for run in known():
                if len(under_way) >= workers:
                    break
                if run.key() not in log.finished and run.key() not in busy:
                    under_way[executor.submit(train, run)] = run
                    progress.set_description(f"{run.setting_name}: {run.method}")
            if not under_way:
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                log.append(under_way.pop(future), future.result())
                progress.update()


def summarize(blocks: Sequence[Block], seeds: Sequence[int] | None, finished: dict[str, dict]) -> dict[str, Any]:
    """Return everything that is reported. Methods whose tuning is not done are left out."""
    results: dict[str, dict[str, dict[int, dict]]] = {}
    spent: dict[str, list[float]] = {}  # CPU seconds of a setting's runs, tuning included
    for setting, method in blocks:
        runs = reported_runs((setting, method), seeds, finished)
        keys = [run.key() for run in known_runs((setting, method), seeds, finished)]
        spent.setdefault(setting, []).extend(finished[key]["cpu_seconds"] for key in keys if key in finished)
        by_seed = {run.seed: finished[run.key()] for run in runs if run.key() in finished}
        if by_seed:
            results.setdefault(setting, {})[method] = by_seed
    core_hours = {setting: sum(seconds) / 3600 for setting, seconds in spent.items()}
    summary: dict[str, Any] = {
        "command": own_command("benchmarks.learning_curves"),
        "note": f"{sum(map(len, spent.values()))} runs, tuning included, {sum(core_hours.values()):.2f} core-hours on "
        f"{processor()}, one thread a run. "
        "Means over seeds with 95% percentile bootstrap intervals, which cover about 90% with ten seeds; p by flipping "
        "the signs of the seeds' differences. What a method needs to GRPO's final pass@1 is of mean curves; ratios to "
        "other pass rates are of median crossings, paired by seed. "
        "How it was measured: `benchmarks/learning_curves`.",
        "core_hours": round(sum(core_hours.values()), 3),
        "torch": torch.__version__,
        "settings": {},
    }
    for setting, methods in results.items():
        summary["settings"][setting] = {
            "description": describe(SETTINGS[setting], next(iter(methods.values()))),
            "fields": SETTINGS[setting].definition(),
            "levels": LEVELS[setting],
            "core_hours": round(core_hours[setting], 3),
            "methods": {
                method: {
                    "tuned": tuned_text((setting, method), finished),
                    "tuning": tuning_table((setting, method), finished),
                    **summarize_method(runs, methods.get("grpo", {}), LEVELS[setting]),
                }
                for method, runs in methods.items()
            },
        }
    return summary


def describe(setting: Setting, runs: dict[int, dict]) -> str:
    first = next(iter(runs.values()))
    steps = " to ".join(map(str, sorted({setting.min_steps, setting.max_steps})))
    return (
        f"{steps} steps, {setting.steps_per_batch} optimizer step(s) on each "
        f"generation batch, {first['completions'][-1]} completions. Before training: pass@1 "
        f"{first['pass_at_1'][0]:.3f}, pass@16 {first['pass_at_16'][0]:.3f}."
    )


def tuned_text(block: Block, finished: dict[str, dict]) -> str:
    chosen = best_candidate(block, finished)
    assert chosen is not None
    rate, options = chosen
    return ", ".join([f"lr {rate:g}", *(f"{name} {value}" for name, value in options.items())])


def tuning_table(block: Block, finished: dict[str, dict]) -> list[dict[str, Any]]:
    return [
        {
            "learning_rate": runs[0].learning_rate,
            **runs[0].options,
            "scores": [round(tuning_score(finished[run.key()]), 4) for run in runs],
        }
        for runs in tuning_runs(block, finished)
    ]


def report(summary: dict[str, Any], output: Path, axis: str = "completions") -> None:
    """Write the summary as JSON and as a Markdown table, and draw a figure over `axis` for each setting.

    A figure leaves out `VARIANTS`.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / "learning_curves.json").write_text(compact_json(summary))
    (output / "learning_curves.md").write_text(markdown(summary))
    for name, setting in summary["settings"].items():
        drawn = {method: outcome for method, outcome in setting["methods"].items() if method not in VARIANTS}
        draw_setting(name, setting | {"methods": drawn}, figure_path(output, name, axis), axis)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, help="default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: those of the suite")
    parser.add_argument(
        "--seeds", nargs="+", type=int, help="seeds that are reported; default: ten, or six in the longer settings"
    )
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes, of one thread each"
    )
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs.jsonl", help="finished runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--axis", choices=AXES, default="completions", help="what the curves of the figures run over")
    parser.add_argument("--plot_only", action="store_true", help="report the finished runs and train none")
    arguments = parser.parse_args()
    if set(arguments.seeds or ()) & set(TUNING_SEEDS):
        parser.error(f"--seeds: {TUNING_SEEDS} are the tuning seeds and cannot be reported; choose others")
    blocks, log = plan(arguments.settings, arguments.methods), RunLog(arguments.runs)
    if not arguments.plot_only:
        train_missing(blocks, arguments.seeds, log, arguments.workers)
    summary = summarize(blocks, arguments.seeds, log.finished)
    report(summary, arguments.output, arguments.axis)
    print(markdown(summary))


if __name__ == "__main__":
    main()
