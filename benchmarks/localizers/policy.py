"""Sample a fixed policy's failures on the testbed, and how often it gets right from each of their steps."""

from collections.abc import Sequence
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


class Sampled(NamedTuple):
    """Hold what `CANDIDATES` completions of each of a setting's problems came to."""

    failures: list[Failure]
    passed: float  # share of all completions that get the reward
    exact: float  # share that is the right solution word for word


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
    exact = [text == problems[row // CANDIDATES].solution() for row, text in enumerate(completions)]
    return Sampled(failures, float(np.mean(rewards)), float(np.mean(exact)))


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cuts: Sequence[tuple[Failure, int]],
    setting: Setting,
    suffixes: int,
    progress: tqdm,
) -> tuple[np.ndarray, np.ndarray]:
    """Continue each failure from before a step of it, `suffixes` times.

    Args:
        cuts: failures with the 1-based step that they are reset to. Before the first one stands the prompt alone.

    Returns:
        Which continuations get the reward, and which are the right solution word for word, (cuts, suffixes) each: in
        the first, errors may cancel each other.
    """
    rows = [(failure.problem, "".join(failure.steps[: step - 1])) for failure, step in cuts for _ in range(suffixes)]
    # Texts of about the same length share a batch, which pads little and ends soon.
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][1]))
    texts = [rows[row][0].prompt + rows[row][1] for row in order]
    sampled = tokenizer.batch_decode(complete(model, tokenizer, texts, longest(setting), 1.0, progress))
    whole = [rows[row][1] + text for row, text in zip(order, sampled, strict=True)]
    passed, exact = np.empty(len(rows), dtype=bool), np.empty(len(rows), dtype=bool)
    passed[order] = np.array(answer_reward(whole, [rows[row][0].answer for row in order])) > 0
    exact[order] = [text == rows[row][0].solution() for row, text in zip(order, whole, strict=True)]
    return passed.reshape(-1, suffixes), exact.reshape(-1, suffixes)
