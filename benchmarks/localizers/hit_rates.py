"""Measure how often each localizer names the first wrong step of a fixed policy's failures, and what that costs.

    python -m benchmarks.localizers.hit_rates             # about ten CPU minutes
    python -m benchmarks.localizers.hit_rates --add prm   # the process reward models alone, beside what is stored

The base model writes four completions of each problem of a setting, and every one that failed is localized: by chance
(a random step, in expectation), by the model itself with 1, 3, 5 and 9 votes, and by a process reward model. The same
is measured on policies that SRPO with its own localization, and with an oracle, has trained, as they are tuned in the
learning curves: a localizer's hit rate moves as the policy and its failures do.

A prefix is clean if the first error is not in it. `distance` is in steps. Tokens are those that are sampled, seconds
those of one CPU thread, for a failure. Intervals are 95% bootstrap intervals over problems.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.common.measuring import compact_json, prepare, processor
from benchmarks.credit.quality import complete
from benchmarks.learning_curves.run import Run, Setting, base_model, base_tokenizer, make_trainer
from benchmarks.learning_curves.suite import RESULTS as CURVES
from benchmarks.learning_curves.suite import SETTINGS, RunLog, reported_runs
from benchmarks.localizers.policy import Failure, continuations, sample_failures
from benchmarks.localizers.prm import BUDGETS, prm_localizer
from benchmarks.localizers.quality import (
    Answers,
    chance_quality,
    effective_hit_rate,
    mean_interval,
    noisy_answers,
    quality,
    reset_steps,
)
from credit_trl.resets.localization import call_localizer, format_localization_prompt, most_voted, parse_localization
from credit_trl.testbed import LOCALIZATION_TEMPLATE

RESULTS = Path(__file__).parent
# Policy -> its setting, the method that trained it (None: the base model), and the share of the problems it gets.
POLICIES = {
    "rare, base model": ("rare", None, 1.0),
    "long, base model": ("long", None, 1.0),
    "rare, after srpo 1x4": ("rare", "srpo 1x4", 0.4),
    "rare, after srpo 1x4 oracle": ("rare", "srpo 1x4 oracle", 0.4),
}
VOTES = (1, 3, 5, 9)
RATES = (0, 0.25, 0.5, 0.75, 1)  # probabilities of the noisy oracle
TEMPERATURE = 0.3  # default of `localization_temperature`
ANSWER_TOKENS = 6  # \boxed{h} and the end are 4 of the testbed's tokens


def ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, failures: Sequence[Failure], progress: tqdm
) -> tuple[list[int | None], int, float]:
    """Ask the model once about each failure. Return the steps named, the tokens sampled and the CPU seconds taken."""
    begun = time.process_time()
    asked = [format_localization_prompt(failure.shown, LOCALIZATION_TEMPLATE) for failure in failures]
    sampled = complete(model, tokenizer, asked, ANSWER_TOKENS, TEMPERATURE, progress)
    answers = [
        parse_localization(text, len(failure.steps))
        for text, failure in zip(tokenizer.batch_decode(sampled), failures, strict=True)
    ]
    tokens = sum(min(len(ids) + 1, ANSWER_TOKENS) for ids in sampled)  # and the end
    return answers, tokens, time.process_time() - begun


def trained_policy(setting: str, method: str, seed: int, runs: Path) -> PreTrainedModel:
    """Return the policy at the end of a run, tuned as in the learning curves; it is trained anew."""
    run: Run = reported_runs((setting, method), [seed], RunLog(runs).finished)[0]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(run, copy.deepcopy(base_model()), folder)
        trainer.train()
    return trainer.model.eval()


def pass_rates(
    model: PreTrainedModel,
    setting: Setting,
    failures: Sequence[Failure],
    named: dict[str, Answers],
    suffixes: int,
    progress: tqdm,
) -> dict[str, dict[str, Any]]:
    """Return how often continuations of every failure pass, by the localizer that says where it is reset to.

    Localizers that name the same step share its continuations, so that differences between them have less noise.
    """
    steps = {name: reset_steps(failures, answers) for name, answers in named.items()}
    cuts = sorted({(index, int(step)) for chosen in steps.values() for index, step in enumerate(chosen)})
    row = {cut: number for number, cut in enumerate(cuts)}
    places = [(failures[index], step) for index, step in cuts]
    passes = continuations(model, base_tokenizer(), places, setting, suffixes, progress)
    prompts = np.array([failure.prompt for failure in failures])
    result = {}
    for name, chosen in steps.items():
        rows = [row[index, int(step)] for index, step in enumerate(chosen)]
        result[name] = {
            kind: mean_interval(outcomes[rows].mean(1), prompts)
            for kind, outcomes in zip(("suffix_pass_rate", "suffix_exact_rate"), passes, strict=True)
        }
    return result


def measure(
    model: PreTrainedModel,
    setting: Setting,
    prompts: int,
    suffixes: int,
    votes: Sequence[int],
    rates: Sequence[float],
    localizers: dict[str, Callable],
    progress: tqdm,
) -> dict[str, Any]:
    """Return what is reported about one policy in one setting.

    Args:
        prompts: number of problems. The failures are the same in every call.
        suffixes: number of continuations of each failure.
        votes: numbers of votes of the model's own localization.
        rates: probabilities of the noisy oracle.
        localizers: further localizers by name.
    """
    torch.manual_seed(0)
    tokenizer = base_tokenizer()
    sampled = sample_failures(model, tokenizer, setting, prompts, progress)
    failures = sampled.failures
    named: dict[str, Answers] = {f"noisy oracle {rate}": noisy_answers(failures, rate) for rate in rates}
    costs = {}
    asked = [ask(model, tokenizer, failures, progress) for _ in range(max(votes, default=0))]
    for count in votes:  # fewer votes are the first ones of more, so that what differs is their number alone
        name = f"self, {count} votes" if count > 1 else "self"
        named[name] = [most_voted(ballot) for ballot in zip(*(answers for answers, *_ in asked[:count]), strict=True)]
        costs[name] = [sum(column) / len(failures) for column in list(zip(*asked[:count], strict=True))[1:]]
    for name, localizer in localizers.items():
        begun = time.process_time()
        named[name] = call_localizer(localizer, [failure.shown for failure in failures])
        costs[name] = [0.0, (time.process_time() - begun) / len(failures)]
    passes = pass_rates(model, setting, failures, named, suffixes, progress)
    measured = {name: quality(failures, answers) | passes[name] for name, answers in named.items()}
    for name, (tokens, seconds) in costs.items():
        measured[name] |= {"tokens": round(tokens, 2), "seconds": round(seconds, 5)}
    return {
        "prompts": prompts,
        "suffixes": suffixes,
        "failures": len(failures),
        "base_pass_rate": round(sampled.passed, 4),
        "base_exact_rate": round(sampled.exact, 4),
        "effective_hit_rates": {str(rate): round(effective_hit_rate(failures, rate), 4) for rate in RATES},
        "localizers": {"chance": chance_quality(failures), **measured},
    }


def table(policies: dict[str, Any]) -> str:
    lines = []
    for name, policy in policies.items():
        lines += ["", f"{name}: {policy['failures']} failures, {policy['base_pass_rate']:.1%} of completions pass", ""]
        lines += ["| localizer | hit rate | clean prefix | distance | continuations pass | tokens | ms |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for localizer, figures in policy["localizers"].items():
            cells = [shown(figures["hit_rate"], True), shown(figures["clean_rate"], True), shown(figures["distance"])]
            cells.append(shown(figures["suffix_pass_rate"], True) if "suffix_pass_rate" in figures else "")
            cost = [f"{figures['tokens']:.1f}", f"{1000 * figures['seconds']:.1f}"] if "tokens" in figures else ["", ""]
            lines.append(f"| {localizer} | {' | '.join(cells + cost)} |")
    return "\n".join(lines)


def shown(interval: Sequence[float], percent: bool = False) -> str:
    value, low, high = (100 * number if percent else number for number in interval)
    unit = "%" if percent else ""
    return f"{value:.1f}{unit} ({low:.1f} to {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=140, help="problems of each setting, four completions each")
    parser.add_argument(
        "--runs", type=Path, default=CURVES / "runs.jsonl", help="finished runs, which say what is tuned"
    )
    parser.add_argument("--suffixes", type=int, default=2, help="continuations of each failure")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS, help="labelled solutions of the PRMs")
    parser.add_argument("--add", choices=("prm",), help="measure these alone, and keep what is stored about others")
    parser.add_argument("--seed", type=int, default=0, help="seed of the trained policies' runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "hit_rates.json")
    arguments = parser.parse_args()
    prepare()
    localizers = {f"prm {solutions}": prm_localizer(solutions) for solutions in arguments.budgets}
    votes, rates = ((), ()) if arguments.add else (VOTES, RATES)
    stored = json.loads(arguments.output.read_text())["policies"] if arguments.output.exists() else {}
    policies: dict[str, Any] = {name: stored[name] for name in POLICIES if name in stored}
    with tqdm(desc="sampled", mininterval=10) as progress:
        for name in arguments.policies:
            setting, method, share = POLICIES[name]
            policy = trained_policy(setting, method, arguments.seed, arguments.runs) if method else base_model().eval()
            prompts = round(share * arguments.prompts)
            numbers = prompts, arguments.suffixes
            measured = measure(policy, SETTINGS[setting], *numbers, votes, rates, localizers, progress)
            if arguments.add:
                measured["localizers"] = policies[name]["localizers"] | measured["localizers"]
            policies[name] = measured
            write(policies, arguments.output)
    print(table(policies))


def write(policies: dict[str, Any], path: Path) -> None:
    result = {
        "command": "python -m benchmarks.localizers.hit_rates",
        "device": f"{processor()}, one thread",
        "torch": torch.__version__,
        "policies": policies,
    }
    path.write_text(compact_json(result))


if __name__ == "__main__":
    main()
