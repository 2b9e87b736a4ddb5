"""Train process reward models of the testbed on few labels, and measure how often they name the first wrong step.

    python -m benchmarks.localizers.prm --output benchmarks/localizers/prm.json

A process reward model (PRM) is the testbed's base model with a new head of two classes, trained in the layout of TRL's
`PRMTrainer`: problem, then every step with the delimiter after it, which carries the label. Its labels are the truth
about the steps of solutions that the base model sampled, half of the setting `long` of the learning curves and half of
`rare`: a PRM with as many labels as there are facts would be an oracle, so the budgets are small, and how many labelled
solutions it has seen is part of its name. All budgets train for equally many optimizer steps.

Measured on other failed completions of the base model, as `PRMLocalizer` reads them: hit rate, the share of clean
prefixes (the first error is not before the named step), and the distance, beside the base model's own answers and a
random step. `4 to 6 steps` and `12 steps` have all 850 facts, of which the labels show a fifth.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from benchmarks.common.measuring import prepare, processor
from benchmarks.common.stored import own_command
from benchmarks.credit.quality import Failure, complete, localizer_quality
from benchmarks.learning_curves.run import base_model_digest, sample_problems
from benchmarks.learning_curves.suite import SETTINGS
from credit_trl.resets.localization import FailedCompletion, format_localization_prompt, parse_localization
from credit_trl.resets.localizers.prm import PRMLocalizer
from credit_trl.testbed import BASE_MODEL, LOCALIZATION_TEMPLATE, Problem, answer_reward, first_error, step_truths
from credit_trl.testbed.arithmetic import STEP_DELIMITER

MODELS = Path(__file__).parents[2] / "runs" / "localizers"
BUDGETS = (100, 500, 2000)  # labelled solutions
OPTIMIZER_STEPS, BATCH_SIZE, LEARNING_RATE = 200, 8, 5e-4
LABELLED_SEED = 4_000_000  # seeds of the labelled problems, and of those that are measured on
MEASURED_SEED = 5_000_000
IGNORED = -100

Sampler = Callable[[int, int], list[Problem]]  # a number of problems and a seed


def _any_facts(least: int, most: int) -> Sampler:
    def sample(count: int, seed: int) -> list[Problem]:
        rng = random.Random(seed)
        return [Problem.sample(rng, rng.randint(least, most)) for _ in range(count)]

    return sample


def _of_setting(name: str) -> Sampler:
    return lambda count, seed: sample_problems(SETTINGS[name], count, seed)


MEASURED = {
    "long": _of_setting("long"),
    "rare": _of_setting("rare"),
    "4 to 6 steps": _any_facts(4, 6),
    "12 steps": _any_facts(12, 12),
}


class Solution(NamedTuple):
    """Hold a solution that the base model sampled, and for each of its steps whether it is right."""

    problem: Problem
    steps: tuple[str, ...]
    truths: tuple[bool, ...]

    @property
    def text(self) -> str:
        return STEP_DELIMITER.join(self.steps)


def base() -> tuple[PreTrainedModel, AutoTokenizer]:
    return AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32), AutoTokenizer.from_pretrained(
        BASE_MODEL
    )


def sample_solutions(problems: Sequence[Problem], seed: int) -> list[Solution]:
    """Sample one completion of each problem at temperature 1, and label its steps. Empty steps leave one out."""
    model, tokenizer = base()
    longest = 6 * max(len(problem.operations) for problem in problems) + 6
    with torch.random.fork_rng(), tqdm(total=len(problems), desc="solutions", leave=False) as progress:
        torch.manual_seed(seed)
        ids = complete(model, tokenizer, [problem.prompt for problem in problems], longest, 1.0, progress)
    texts = zip(problems, tokenizer.batch_decode(ids), strict=True)
    solutions = [Solution(p, tuple(text.split(STEP_DELIMITER)), tuple(step_truths(p, text))) for p, text in texts]
    return [solution for solution in solutions if all(solution.steps)]


# --- training ---


def label_solutions(count: int, seed: int = LABELLED_SEED) -> list[Solution]:
    """Return `count` labelled solutions, half of `long` and half of `rare`."""
    problems = [p for name in ("long", "rare") for p in sample_problems(SETTINGS[name], count // 2, seed)]
    return sample_solutions(problems, seed)


def tokenize(solution: Solution, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels as TRL's `PRMTrainer` makes them: a label at the delimiter after each step."""
    ids = tokenizer(solution.problem.prompt)["input_ids"]
    labels = [IGNORED] * len(ids)
    for step, truth in zip(solution.steps, solution.truths, strict=True):
        step_ids = tokenizer(step + STEP_DELIMITER)["input_ids"]
        ids += step_ids
        labels += [IGNORED] * (len(step_ids) - 1) + [int(truth)]
    return torch.tensor(ids), torch.tensor(labels)


def train_prm(solutions: Sequence[Solution], steps: int = OPTIMIZER_STEPS, seed: int = 0) -> PreTrainedModel:
    """Train a PRM from the base model's body on labelled solutions, in passes over them in random order."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    rows = [tokenize(solution, tokenizer) for solution in solutions]
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of the new head and of the order
        config = AutoConfig.from_pretrained(BASE_MODEL, num_labels=2)
        config.classifier_dropout = 0.0  # the architecture's own is 0.1
        model = AutoModelForTokenClassification.from_pretrained(BASE_MODEL, config=config, dtype=torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
        order: list[int] = []
        for _ in tqdm(range(steps), desc=f"PRM of {len(rows)} solutions", leave=False):
            if len(order) < BATCH_SIZE:
                order += torch.randperm(len(rows)).tolist()
            batch, order = [rows[index] for index in order[:BATCH_SIZE]], order[BATCH_SIZE:]
            ids = pad_sequence([ids for ids, _ in batch], batch_first=True)
            labels = pad_sequence([labels for _, labels in batch], batch_first=True, padding_value=IGNORED)
            logits = model(input_ids=ids).logits  # no token attends to the padding, which is on the right
            loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval()


def load_or_train(solutions: int, folder: Path = MODELS) -> Path:
    """Return the folder of the PRM that has seen `solutions` labelled solutions, trained first where it is missing.

    Of several processes that miss it at once, one trains it and the others wait.
    """
    path = folder / f"prm_{solutions}_{base_model_digest()}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():  # no other process has trained it meanwhile
            with tempfile.TemporaryDirectory(dir=folder) as draft:
                train_prm(label_solutions(solutions)).save_pretrained(draft)
                AutoTokenizer.from_pretrained(BASE_MODEL).save_pretrained(draft)
                os.chmod(draft, 0o755)
                os.rename(draft, path)  # whole or not at all
                Path(draft).mkdir()  # for the context to remove
    return path


def prm_localizer(solutions: int, folder: Path = MODELS, **options) -> PRMLocalizer:
    """Return the localizer of the PRM that has seen `solutions` labelled solutions."""
    return PRMLocalizer(str(load_or_train(solutions, folder)), step_separator=STEP_DELIMITER, **options)


# --- measuring ---


def sample_failures(sampler: Sampler, wanted: int, seed: int = MEASURED_SEED) -> list[Failure]:
    """Return `wanted` failed completions of the base model with their first wrong step; nothing is named yet.

    A missing step counts as an error of the last one, since a completion can be cut no later.
    """
    found: list[Failure] = []
    while len(found) < wanted:
        solutions = sample_solutions(sampler(512, seed), seed)
        rewards = answer_reward([s.text for s in solutions], [s.problem.answer for s in solutions])
        for (problem, steps, _), reward in zip(solutions, rewards, strict=True):
            error = first_error(problem, STEP_DELIMITER.join(steps))
            if reward < 1 and error is not None:
                found.append(Failure(problem, steps, min(error, len(steps)), None))
        seed += 1
    return found[:wanted]


def policy_localizer(failed: Sequence[FailedCompletion]) -> list[int | None]:
    """Return the steps that the base model itself names, asked as SRPO asks it."""
    model, tokenizer = base()
    asked = [format_localization_prompt(completion, LOCALIZATION_TEMPLATE) for completion in failed]
    with torch.random.fork_rng(), tqdm(total=len(asked), desc="answers", leave=False) as progress:
        torch.manual_seed(0)
        answers = tokenizer.batch_decode(complete(model, tokenizer, asked, 6, 0.3, progress))
    pairs = zip(answers, failed, strict=True)
    return [parse_localization(answer, len(completion.steps)) for answer, completion in pairs]


def measure_localizer(localizer: Callable, found: Sequence[Failure]) -> dict[str, dict]:
    """Return the quality of what `localizer` names of failed completions, with 95% bootstrap intervals.

    The figures are those of `benchmarks.credit.quality.localizer_quality`: `hit_rate`, `clean_rate`, `parse_rate`,
    `distance`, and what a random step would have.
    """
    named = localizer([FailedCompletion(failure.problem.prompt, failure.steps) for failure in found])
    named_failures = [failure._replace(named=step) for failure, step in zip(found, named, strict=True)]
    return localizer_quality(named_failures, np.random.default_rng(0))


def step_accuracy(localizer: PRMLocalizer, solutions: Sequence[Solution]) -> dict[str, float]:
    """Return the share of steps that are classified right: of all, of the right ones, and of the wrong ones."""
    failed = [FailedCompletion(solution.problem.prompt, solution.steps) for solution in solutions]
    right = np.concatenate(localizer.step_probabilities(failed)) >= localizer.threshold
    truth = np.concatenate([solution.truths for solution in solutions])
    return {
        "all": float((right == truth).mean()),
        "right_steps": float(right[truth].mean()),
        "wrong_steps": float((~right)[~truth].mean()),
    }


def without_a_wrong_step(localizer: PRMLocalizer, found: Sequence[Failure]) -> dict[str, float]:
    """Return how often no step is below the threshold, and what naming the least likely is worth there."""
    failed = [FailedCompletion(failure.problem.prompt, failure.steps) for failure in found]
    named, scores = localizer(failed), localizer.step_probabilities(failed)
    rows = [
        (step == failure.error, 1 / len(failure.steps))
        for failure, step, steps in zip(found, named, scores, strict=True)
        if min(steps) >= localizer.threshold
    ]
    hits, random_hits = np.array(rows).reshape(-1, 2).T
    share = len(rows) / len(found)
    return {"share": share} | ({"hit_rate": hits.mean(), "hit_rate_random": random_hits.mean()} if rows else {})


def table(result: dict) -> str:
    lines = ["| failed completions | localizer | hit rate | clean prefix | distance |", "|---|---|---|---|---|"]
    for name, measured in result["localization"].items():
        for who, figures in measured.items():
            hit, clean = (
                "{:.1%} ({:.1%} to {:.1%})".format(figures[key]["value"], *figures[key]["interval"])
                for key in ("hit_rate", "clean_rate")
            )
            lines.append(f"| {name} | {who} | {hit} | {clean} | {figures['distance']['value']:.2f} |")
        chance = measured["the policy itself"]
        lines.append(
            f"| {name} | a random step | {chance['hit_rate_random']['value']:.1%} "
            f"| {chance['clean_rate_random']['value']:.1%} | {chance['distance_random']['value']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS), help="labelled solutions")
    parser.add_argument("--failures", type=int, default=1000, help="failed completions to localize, of each kind")
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    prepare()
    result: dict = {
        "command": own_command("benchmarks.localizers.prm"),
        "device": processor(),
        "torch": torch.__version__,
        "optimizer_steps": OPTIMIZER_STEPS,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "prms": {},
        "localization": {},
    }
    found = {name: sample_failures(sampler, arguments.failures) for name, sampler in MEASURED.items()}
    unseen = label_solutions(400, MEASURED_SEED)
    for name, failures in found.items():
        result["localization"][name] = {"the policy itself": measure_localizer(policy_localizer, failures)}
    for budget in arguments.budgets:
        begun = time.process_time()
        localizer = prm_localizer(budget)
        result["prms"][budget] = {
            "cpu_seconds_to_load_or_train": round(time.process_time() - begun, 1),
            "labelled_steps": sum(len(solution.steps) for solution in label_solutions(budget)),
            "step_accuracy": step_accuracy(localizer, unseen),
            "no_step_below_the_threshold": {
                name: without_a_wrong_step(localizer, failures) for name, failures in found.items()
            },
        }
        print(f"{budget} solutions:", json.dumps(result["prms"][budget]), flush=True)
        for name, failures in found.items():
            figures = measure_localizer(localizer, failures)
            result["localization"][name][f"PRM of {budget} solutions"] = figures
            print(name, figures["hit_rate"], figures["clean_rate"], flush=True)
    print(table(result))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
