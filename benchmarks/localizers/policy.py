"""Sample a fixed policy's failures on the testbed, and how often it gets right from each of their steps."""

import copy
import random
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.credit.quality import complete
from benchmarks.learning_curves.run import Setting, sample_problems
from credit_trl.resets.localization import FailedCompletion
from credit_trl.resets.steps import split_steps
from credit_trl.testbed import Problem, answer_reward, first_error
from credit_trl.testbed.arithmetic import STEP_DELIMITER

CANDIDATES = 4  # completions of the base group of SRPO 1x4, of which one that failed is cut
PROBLEM_SEED = 3_000_000  # seed of the problems, far from those of training and of evaluation


class Failure(NamedTuple):
    """Hold a failed completion, with the truth about it."""

    prompt: int  # index of its problem
    candidate: int  # index among the completions of its problem
    problem: Problem
    steps: tuple[str, ...]
    error: int | None  # 1-based number of the first wrong step; None where a missing step is the first wrong one

    @property
    def shown(self) -> FailedCompletion:
        """Return what a localizer is shown."""
        return FailedCompletion(self.problem.prompt, self.steps)


@dataclass
class Sampled:
    """Hold `CANDIDATES` completions of each of a setting's problems."""

    failures: list[Failure]
    base_pass_rate: float  # share of all completions
    passes: list[np.ndarray] = field(default_factory=list)  # (steps, suffixes) each, as `continuations` returns them


def longest(setting: Setting) -> int:
    """Return a completion's limit in tokens, as in training."""
    return 6 * setting.max_steps + 6


def sample_failures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, setting: Setting, prompts: int, progress: tqdm
) -> Sampled:
    """Sample `CANDIDATES` completions of `prompts` problems of the setting, and keep those that failed."""
    problems = sample_problems(setting, prompts, PROBLEM_SEED)
    texts = [problem.prompt for problem in problems for _ in range(CANDIDATES)]
    sampled = complete(model, tokenizer, texts, longest(setting), 1.0, progress)
    completions = tokenizer.batch_decode(sampled)
    rewards = answer_reward(completions, [problem.answer for problem in problems for _ in range(CANDIDATES)])
    failures = []
    for row, (ids, text, reward) in enumerate(zip(sampled, completions, rewards, strict=True)):
        if reward < 1 and ids:
            prompt, candidate = divmod(row, CANDIDATES)
            steps = tuple(step.text for step in split_steps(ids, tokenizer.decode, STEP_DELIMITER))
            error = first_error(problems[prompt], text)
            error = error if error is not None and error <= len(steps) else None
            failures.append(Failure(prompt, candidate, problems[prompt], steps, error))
    return Sampled(failures, float(np.mean(rewards)))


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    failures: list[Failure],
    setting: Setting,
    suffixes: int,
    progress: tqdm,
) -> list[np.ndarray]:
    """Return for each failure which of `suffixes` continuations pass, from before each of its steps: (steps, suffixes).

    What precedes the first step is the prompt alone: those are new completions of the problem.
    """
    rows = [
        (failure.problem, "".join(failure.steps[:step]))
        for failure in failures
        for step in range(len(failure.steps))
        for _ in range(suffixes)
    ]
    # Texts of about the same length share a batch, which pads little and ends soon.
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][1]))
    texts = [rows[row][0].prompt + rows[row][1] for row in order]
    sampled = tokenizer.batch_decode(complete(model, tokenizer, texts, longest(setting), 1.0, progress))
    whole = [rows[row][1] + text for row, text in zip(order, sampled, strict=True)]
    passed = np.empty(len(rows), dtype=bool)
    passed[order] = np.array(answer_reward(whole, [rows[row][0].answer for row in order])) > 0
    ends = np.cumsum([len(failure.steps) for failure in failures])[:-1]
    return np.split(passed.reshape(-1, suffixes), ends)
