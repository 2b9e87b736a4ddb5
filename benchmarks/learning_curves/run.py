"""Run one training of the learning curves, as a worker process does: settings, training, exact pass rates."""

import copy
import functools
import hashlib
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.utils import logging as transformers_logging
from trl import GRPOTrainer

from benchmarks.common.measuring import QUIET, prepare
from benchmarks.common.methods import METHODS
from credit_trl.testbed import BASE_MODEL, Problem, answer_reward
from credit_trl.testbed.arithmetic import MODULUS, as_dataset

COMPLETIONS = 64  # completions of a generation batch, all trained
NUM_GENERATIONS = 8
WARMUP = 5  # generation batches until the learning rate is reached: Adam's first steps are large ones
HELD_OUT_SEED = 2_000_000  # seed of the held-out problems, far from those of the training problems
# What problems are made of: six operations on 17 values are 102 facts, few enough to be learned within a minute.
OPERATIONS = (("*", 3), ("+", 5), ("-", 7), ("*", 11), ("+", 12), ("-", 4))
HARD_OPERATIONS = (("+", 3), ("+", 5), ("-", 7), ("-", 10))  # the base model is wrong in more of these
# The half of all 48 operations in which the base model is wrong most often: 408 facts, too many for a minute.
WIDE_OPERATIONS = (
    *(("+", operand) for operand in (1, 2, 3, 5, 9, 11)),
    *(("-", operand) for operand in (1, 2, 3, 4, 6, 8, 9, 10, 11, 13, 15, 16)),
    *(("*", operand) for operand in (3, 4, 8, 9, 10, 13)),
)

# Means over a run of what TRL and the trainers log. TRL counts `frac_reward_zero_std` over all completions of a prompt,
# also where reset groups are compared with themselves alone.
DIAGNOSTICS = (
    "reward",
    "frac_reward_zero_std",
    "grad_norm",
    "entropy",
    "completions/clipped_ratio",
    "clip_ratio/region_mean",
    "trace/token_clip_fraction",
    "trace/ratio_std",
    "trace/effective_length",
    "trace/eligible_fraction",
    "reset/seeded_fraction",
    "reset/parse_rate",
    "reset/step",
    "reset/kept_fraction",
    "reset/base_pass_rate",
    "reset/suffix_pass_rate",
    "reset/corrected_fraction",
    "reset/seed_draws",
    "reset/trained_tokens",
)


@dataclass(frozen=True)
class Setting:
    """Describe the problems and how long they are trained on.

    Args:
        min_steps, max_steps: range of the number of steps of a problem.
        num_iterations: times that each generation batch is trained on. 1 is on policy, every ratio being 1.
        generations: generation batches of a run, `COMPLETIONS` each; no problem comes twice.
        evaluate_every: generation batches between two evaluations.
        held_out: problems of an evaluation.
        operations: drawn from in every step.
        mini_batches: optimizer steps in which a generation batch is trained on once.
    """

    min_steps: int
    max_steps: int
    num_iterations: int
    generations: int
    evaluate_every: int
    held_out: int = 128
    operations: tuple[tuple[str, int], ...] = OPERATIONS
    mini_batches: int = 1

    @property
    def steps_per_batch(self) -> int:
        """Return the optimizer steps on each generation batch."""
        return self.num_iterations * self.mini_batches

    def definition(self) -> dict[str, Any]:
        """Return what defines the setting. Settings older than `mini_batches` keep the keys of their runs."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("mini_batches", 1)}


@dataclass(frozen=True)
class Run:
    """Hold everything that defines a training run, apart from the base model."""

    setting_name: str
    setting: Setting
    method: str
    learning_rate: float
    options: dict[str, Any] = field(default_factory=dict)  # options of the method that were tuned
    seed: int = 0

    def key(self) -> str:
        """Return a key that two runs share if their settings, method, seed and base model are the same.

        The code has no part in it. To measure a trainer that has changed, give `--runs` a new file.
        """
        method = METHODS[self.method]
        definition = {
            "setting": self.setting.definition(),
            "completions": [COMPLETIONS, NUM_GENERATIONS, HELD_OUT_SEED],
            "method": [self.method, method.trainer.__name__, method.options | self.options],
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "base_model": base_model_digest(),
        }
        return json.dumps(definition, sort_keys=True)


@functools.cache
def base_model_digest() -> str:
    return hashlib.sha256((BASE_MODEL / "model.safetensors").read_bytes()).hexdigest()[:16]


def prepare_worker() -> None:
    prepare()
    transformers_logging.disable_progress_bar()


@functools.cache
def base_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)


@functools.cache
def base_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BASE_MODEL)


def sample_problems(setting: Setting, count: int, seed: int) -> list[Problem]:
    rng = random.Random(seed)
    problems = []
    for _ in range(count):
        steps = rng.randint(setting.min_steps, setting.max_steps)
        problems.append(Problem(rng.randrange(MODULUS), tuple(rng.choices(setting.operations, k=steps))))
    return problems


@torch.no_grad()
def solution_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: list[Problem], batch_size: int = 64
) -> torch.Tensor:
    """Return for every problem the probability, at temperature 1, that `model` writes its solution and then ends.

    It takes one forward pass over the solution and no samples, so that it has no noise. A completion whose errors
    cancel each other gets the reward without being the solution: it counts as a failure here.
    """
    probabilities = []
    for start in range(0, len(problems), batch_size):
        batch = problems[start : start + batch_size]
        prompts = [tokenizer(problem.prompt)["input_ids"] for problem in batch]
        texts = [tokenizer(problem.solution())["input_ids"] + [tokenizer.eos_token_id] for problem in batch]
        rows = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        longest = max(map(len, rows))
        # Padding on the right: no token of the solution attends to it.
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
        scored = torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            scored[row, len(prompt) : len(prompt) + len(text)] = True
        logps = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        logps = logps.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        probabilities.append(logps.where(scored[:, 1:], 0.0).double().sum(-1).exp())
    return torch.cat(probabilities)


def pass_at(probabilities: torch.Tensor, k: int) -> float:
    """Return the expected share of problems of which at least one of k independent samples is right."""
    return (1 - (1 - probabilities) ** k).mean().item()


class Curve(TrainerCallback):
    """Evaluate before training and every `setting.evaluate_every` generation batches. Its time does not count."""

    def __init__(self, setting: Setting, tokenizer: PreTrainedTokenizerBase):
        self.problems, self.tokenizer = sample_problems(setting, setting.held_out, HELD_OUT_SEED), tokenizer
        self.every = setting.evaluate_every * setting.steps_per_batch
        self.steps: list[int] = []
        self.seconds: list[float] = []
        self.pass_at_1: list[float] = []
        self.pass_at_16: list[float] = []
        self.diverged = False

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.trained = 0.0
        self._evaluate(0, model)

    def on_step_end(self, args, state, control, model, **kwargs):
        # Sampling from weights that are not finite raises.
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            self.diverged = control.should_training_stop = True
        elif state.global_step % self.every == 0:
            self.trained += time.process_time() - self.resumed
            self._evaluate(state.global_step, model)

    def _evaluate(self, step: int, model: PreTrainedModel) -> None:
        model.eval()
        probabilities = solution_probabilities(model, self.tokenizer, self.problems)
        model.train()
        self.steps.append(step)
        self.seconds.append(self.trained)
        self.pass_at_1.append(pass_at(probabilities, 1))
        self.pass_at_16.append(pass_at(probabilities, 16))
        self.resumed = time.process_time()


def make_trainer(
    run: Run, model: PreTrainedModel, folder: str, callbacks: Sequence[TrainerCallback] = ()
) -> GRPOTrainer:
    """Return the trainer of a run, which writes nothing to `folder`."""
    setting, method = run.setting, METHODS[run.method]
    completions_each = method.copies * method.options.get("num_generations", NUM_GENERATIONS)
    problems = sample_problems(setting, setting.generations * COMPLETIONS // completions_each, run.seed)
    if method.copies > 1:  # in the order that TRL shuffles the problems of the other methods into
        order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(run.seed)).tolist()
        problems = [problems[index] for index in order for _ in range(method.copies)]
    return method.make_trainer(
        model,
        answer_reward,
        dict(
            output_dir=folder,
            per_device_train_batch_size=COMPLETIONS // setting.mini_batches,
            steps_per_generation=setting.mini_batches,
            num_generations=NUM_GENERATIONS,
            max_completion_length=6 * setting.max_steps + 6,  # a solution has 6 n + 3 tokens, the end included
            num_iterations=setting.num_iterations,
            max_steps=setting.generations * setting.steps_per_batch,
            learning_rate=run.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=WARMUP * setting.steps_per_batch,
            seed=run.seed,
            use_cpu=True,
            **QUIET,
            logging_steps=1,
            **run.options,
        ),
        train_dataset=as_dataset(problems),
        processing_class=base_tokenizer(),
        callbacks=list(callbacks),
    )


def train(run: Run) -> dict[str, Any]:
    """Train and return what is kept of the run: its curve, the means of its diagnostics and its cost.

    `seconds` and `cpu_seconds` are CPU seconds of this process with one thread, which other processes on the machine
    disturb less than wall seconds; the first are of training alone. A run whose weights stop being finite has the pass
    rate 0 from there on.
    """
    begun = time.process_time()
    setting, curve = run.setting, Curve(run.setting, base_tokenizer())
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(run, copy.deepcopy(base_model()), folder, [curve])
        trainer.train()
    history = trainer.state.log_history
    points = range(0, setting.generations * setting.steps_per_batch + 1, curve.every)
    missing = len(points) - len(curve.steps)  # where the run diverged
    return {
        "completions": [step // setting.steps_per_batch * COMPLETIONS for step in points],
        "generated_tokens": [generated_tokens(history, step) for step in points],
        "seconds": [round(value, 3) for value in curve.seconds + [curve.trained] * missing],
        "pass_at_1": [round(value, 6) for value in curve.pass_at_1 + [0.0] * missing],
        "pass_at_16": [round(value, 6) for value in curve.pass_at_16 + [0.0] * missing],
        "diverged": curve.diverged,
        "diagnostics": diagnostics(history),
        "cpu_seconds": round(time.process_time() - begun, 2),
    }


def generated_tokens(history: list[dict[str, Any]], step: int) -> int:
    """Count the tokens sampled up to optimizer step `step`: completions, continuations, seeds and localizations."""
    total = 0.0
    for entry in history:
        if entry["step"] > step:
            continue
        if "reset/generated_tokens" in entry:
            total += entry["reset/generated_tokens"] + entry["reset/localization_tokens"]
        elif "completions/mean_length" in entry:
            total += entry["completions/mean_length"] * COMPLETIONS
    return round(total)


def diagnostics(history: list[dict[str, Any]]) -> dict[str, float]:
    values = {name: [entry[name] for entry in history if name in entry] for name in DIAGNOSTICS}
    return {name: round(fmean(logged), 5) for name, logged in values.items() if logged}
