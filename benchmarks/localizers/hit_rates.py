"""Measure how often each localizer names the first wrong step of a fixed policy's failures, and what that costs.

    python -m benchmarks.localizers.hit_rates             # the base model, about five CPU minutes

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

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.common.measuring import prepare, processor
from benchmarks.credit.quality import complete
from benchmarks.learning_curves.run import Run, Setting, base_model, base_tokenizer, make_trainer
from benchmarks.learning_curves.suite import RESULTS as CURVES
from benchmarks.learning_curves.suite import SETTINGS, RunLog, reported_runs
from benchmarks.localizers.policy import Failure, sample_failures
from benchmarks.localizers.quality import chance_quality, effective_hit_rate, noisy_answers, quality
from credit_trl.resets.localization import format_localization_prompt, most_voted, parse_localization
from credit_trl.testbed import LOCALIZATION_TEMPLATE

RESULTS = Path(__file__).parent
MEASURED = ("rare", "long")  # settings
TRAINED = ("srpo 1x4", "srpo 1x4 oracle")  # methods that train the policies beside the base model, in `rare`
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


def own_quality(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    failures: Sequence[Failure],
    votes: Sequence[int],
    progress: tqdm,
) -> dict[int, dict[str, Any]]:
    """Return the quality and cost of the model's own localization, by the number of votes.

    Fewer votes are the first ones of more, so that what differs is the number alone.
    """
    asked = [ask(model, tokenizer, failures, progress) for _ in range(max(votes))]
    result = {}
    for count in votes:
        ballots = zip(*(answers for answers, _, _ in asked[:count]), strict=True)
        result[count] = quality(failures, [most_voted(list(ballot)) for ballot in ballots]) | {
            "tokens": round(sum(tokens for _, tokens, _ in asked[:count]) / len(failures), 2),
            "seconds": round(sum(seconds for _, _, seconds in asked[:count]) / len(failures), 5),
        }
    return result


def localized_by(localizer: Callable, failures: Sequence[Failure]) -> dict[str, Any]:
    """Return the quality and cost of a callable localizer, which samples no tokens."""
    begun = time.process_time()
    named = localizer([failure.shown for failure in failures])
    seconds = time.process_time() - begun
    return quality(failures, named) | {"tokens": 0.0, "seconds": round(seconds / len(failures), 5)}


def trained_policy(method: str, seed: int, runs: Path) -> PreTrainedModel:
    """Return the policy at the end of a run of `rare`, trained as tuning chose; it is trained anew."""
    run: Run = reported_runs(("rare", method), [seed], RunLog(runs).finished)[0]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(run, copy.deepcopy(base_model()), folder)
        trainer.train()
    return trainer.model.eval()


def measure(
    model: PreTrainedModel,
    setting: Setting,
    prompts: int,
    votes: Sequence[int],
    localizers: dict[str, Callable],
    progress: tqdm,
) -> dict[str, Any]:
    """Return what is reported about one policy in one setting."""
    tokenizer = base_tokenizer()
    sampled = sample_failures(model, tokenizer, setting, prompts, progress)
    failures = sampled.failures
    own = own_quality(model, tokenizer, failures, votes, progress)
    return {
        "prompts": prompts,
        "failures": len(failures),
        "base_pass_rate": round(sampled.base_pass_rate, 4),
        "localizers": {
            "chance": chance_quality(failures),
            **{f"noisy oracle {rate}": quality(failures, noisy_answers(failures, rate)) for rate in RATES},
            **{f"self, {count} votes" if count > 1 else "self": figures for count, figures in own.items()},
            **{name: localized_by(localizer, failures) for name, localizer in localizers.items()},
        },
        "effective_hit_rates": {str(rate): round(effective_hit_rate(failures, rate), 4) for rate in RATES},
    }


def table(result: dict[str, Any]) -> str:
    lines = []
    for name, policy in result["policies"].items():
        lines += ["", f"{name}: {policy['failures']} failures, {policy['base_pass_rate']:.1%} of completions pass", ""]
        lines += ["| localizer | hit rate | clean prefix | distance | tokens | ms |", "|---|---|---|---|---|---|"]
        for localizer, figures in policy["localizers"].items():
            cells = [shown(figures["hit_rate"], True), shown(figures["clean_rate"], True), shown(figures["distance"])]
            cells += (
                [f"{figures['tokens']:.1f}", f"{1000 * figures['seconds']:.1f}"] if "tokens" in figures else ["", ""]
            )
            lines.append(f"| {localizer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(interval: Sequence[float], percent: bool = False) -> str:
    value, low, high = (100 * number if percent else number for number in interval)
    unit = "%" if percent else ""
    return f"{value:.1f}{unit} ({low:.1f} to {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=260, help="problems of each setting, four completions each")
    parser.add_argument(
        "--runs", type=Path, default=CURVES / "runs.jsonl", help="finished runs, which say what is tuned"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the trained policies' runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "hit_rates.json")
    arguments = parser.parse_args()
    prepare()
    policies = {}
    with tqdm(desc="sampled", mininterval=10) as progress:
        for name in MEASURED:
            torch.manual_seed(0)
            policies[f"{name}, base model"] = measure(
                base_model().eval(), SETTINGS[name], arguments.prompts, VOTES, {}, progress
            )
        for method in TRAINED:
            policy = trained_policy(method, arguments.seed, arguments.runs)
            torch.manual_seed(0)
            policies[f"rare, after {method}"] = measure(
                policy, SETTINGS["rare"], arguments.prompts, VOTES[:1], {}, progress
            )
    result = {
        "command": "python -m benchmarks.localizers.hit_rates",
        "device": f"{processor()}, one thread",
        "torch": torch.__version__,
        "policies": policies,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
