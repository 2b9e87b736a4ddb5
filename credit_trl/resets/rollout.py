"""The phases of a rollout with reset groups, each batched over all prompts of a process and in lockstep on all.

1. Base: the base group of every prompt is sampled and scored. Untrained completions are drawn where seeds have to be.
2. Localization: every failed completion that was chosen as a seed is cut just before the step to reset to. To choose
   the furthest ones, all are localized.
3. Suffixes: all other slots, each after the prefix of its seed, with what is left of the length.

Every process makes the same plan from all processes' rewards, and then generates and scores equally many rows.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import gather_object

from .groups import GroupPlan, Reset, check_split, choose_reset, furthest_failures, plan_groups
from .localization import (
    DEFAULT_TEMPLATE,
    FailedCompletion,
    call_localizer,
    format_localization_prompt,
    parse_localization,
)
from .metrics import reset_metrics
from .steps import Step, split_steps

if TYPE_CHECKING:
    from .trainer import SRPOTrainer


class Sample(NamedTuple):
    """Sampled token ids, and their log-probabilities where the engine reports them."""

    ids: list[int]
    logprobs: list[float] | None = None

    def first(self, length: int) -> "Sample":
        return Sample(self.ids[:length], None if self.logprobs is None else self.logprobs[:length])

    def then(self, other: "Sample") -> "Sample":
        logprobs = None if other.logprobs is None else (self.logprobs or []) + other.logprobs
        return Sample(self.ids + other.ids, logprobs)


NOTHING = Sample([])


class Localized(NamedTuple):
    """A failed completion, its steps, and the 1-based step of its first error; None where that is unknown."""

    sample: Sample
    steps: list[Step]
    first_error: int | None


class Cut(NamedTuple):
    """Where a seed was cut: its steps, the first wrong one as the localizer named it, and the reset."""

    steps: list[Step]
    first_error: int | None
    reset: Reset


@dataclass
class Rollout:
    """One rollout of a process's share of a generation batch: `run` makes `samples`, `plan` and the rest.

    Args:
        trainer: samples and scores.
        inputs: the share's rows, `num_generations` in succession for each prompt.
    """

    trainer: "SRPOTrainer"
    inputs: list[dict[str, Any]]
    prompt_ids: list[list[int]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    prefixes: list[Sample] = field(default_factory=list)  # of `samples`
    columns: dict[str, list] = field(default_factory=dict)  # of the completions table
    metrics: dict[str, float] = field(default_factory=dict)
    cuts: dict[int, Cut] = field(default_factory=dict)  # of this process's seeds, by their index in the plan
    plan: GroupPlan = field(init=False)  # of all processes
    rewards: torch.Tensor = field(init=False)  # of all processes' slots
    totals: dict[str, float] = field(init=False)  # of this process

    def __post_init__(self):
        names = ("generated_tokens", "localization_tokens", "seed_draws")
        self.totals = dict.fromkeys(names, 0.0)
        self.G: int = self.trainer.num_generations  # type: ignore[assignment]  # GRPOConfig sets both
        self.T: int = self.trainer.max_completion_length  # type: ignore[assignment]
        self.P = len(self.inputs) // self.G
        self.rank, self.processes = self.trainer.accelerator.process_index, self.trainer.accelerator.num_processes

    def run(self, prompts: list) -> None:
        trainer, args = self.trainer, self.trainer.args
        self.prompt_ids = trainer._token_ids(prompts)
        base_size = check_split(self.G, args.num_reset_prefixes, args.suffixes_per_prefix)
        rows = range(len(prompts))
        base, rest = [r for r in rows if r % self.G < base_size], [r for r in rows if r % self.G >= base_size]
        self.samples, self.prefixes = [NOTHING] * len(rows), [NOTHING] * len(rows)
        rewards: list[torch.Tensor] = []

        with self._timed("base"):
            if base:
                for row, sample in zip(base, self._sample([self.prompt_ids[row] for row in base]), strict=True):
                    self.samples[row] = sample
                rewards.append(self._score(base, ["base"] * len(base)))
        with self._timed("seeds"):
            if base and args.seed_source == "base":
                candidates = [self.samples[first : first + base_size] for first in rows[:: self.G]]
                failed = trainer._failed(rewards[0]).view(-1, base_size).tolist()
            else:
                candidates, failed = self._draw_seeds()
        localized: dict[tuple[int, int], Localized] = {}
        if args.seed_selection == "furthest":
            with self._timed("localization"):
                keys = [(prompt, number) for prompt, outcomes in enumerate(failed) for number in range(len(outcomes))]
                localized = self._localize(candidates, [key for key in keys if failed[key[0]][key[1]]])
                errors = [(key, one.first_error) for key, one in localized.items()]
                failed = furthest_failures(failed, dict(gather_object(errors)), args.num_reset_prefixes)
        # Counts generation batches, several of which may be made for one optimizer step, and goes on after a resume.
        accumulation = args.gradient_accumulation_steps
        self.plan = plan_groups(
            failed,
            num_generations=self.G,
            num_reset_prefixes=args.num_reset_prefixes,
            suffixes_per_prefix=args.suffixes_per_prefix,
            seed=args.seed,
            step=trainer.state.global_step * accumulation + trainer._step % accumulation,
        )
        slots = self.plan.slots[self.rank * len(rows) : (self.rank + 1) * len(rows)]
        with self._timed("localization"):
            if args.seed_selection == "random":
                localized = self._localize(candidates, [(seed.prompt, seed.candidate) for seed in self.plan.seeds])
            prefixes = self._cut_prefixes(localized)
        with self._timed("suffixes"):
            for row in rest:
                self.prefixes[row] = prefixes.get(slots[row].seed, NOTHING)
            budgets = [self.T - len(self.prefixes[row].ids) for row in rest]
            # One number for all processes: vLLM may generate for several of them in one call.
            longest = max(gather_object([max(budgets)]))
            suffixes = self._sample([self.prompt_ids[row] + self.prefixes[row].ids for row in rest], longest)
            for row, budget, suffix in zip(rest, budgets, suffixes, strict=True):
                self.samples[row] = self.prefixes[row].then(suffix.first(budget))
            rewards.append(self._score(rest, ["fresh" if slots[row].seed is None else "reset" for row in rest]))

        # Both phases' rewards are in the order of the processes and their prompts.
        by_prompt = [part.view(self.P * self.processes, -1, part.shape[1]) for part in rewards]
        self.rewards = torch.cat(by_prompt, dim=1).flatten(0, 1)
        steps = [self.cuts[slot.seed].reset.step if slot.seed is not None else None for slot in slots]
        self.columns["reset_step"] = steps
        self._measure([one.first_error is not None for one in localized.values()])

    @property
    def env_mask(self) -> list[list[int]]:
        """0 on the prefixes, which TRL then leaves out of the loss, its denominator and its token metrics."""
        pairs = zip(self.samples, self.prefixes, strict=True)
        return [[0] * len(prefix.ids) + [1] * (len(sample.ids) - len(prefix.ids)) for sample, prefix in pairs]

    def _draw_seeds(self) -> tuple[list[list[Sample]], list[list[bool]]]:
        """Untrained completions: a round for all prompts that lack a failure, until none does or the attempts are used.

        A process with fewer prompts that lack one draws for others too and drops what comes, so that all processes have
        equally many rows to generate and score, and no prompt's seeds depend on other prompts.
        """
        args, local = self.trainer.args, range(self.rank * self.P, (self.rank + 1) * self.P)
        failed: list[list[bool]] = [[] for _ in range(self.P * self.processes)]
        candidates: list[list[Sample]] = [[] for _ in range(self.P)]
        for _ in range(args.max_seed_attempts):
            lacking: list[list[int]] = [[] for _ in range(self.processes)]
            for prompt, outcomes in enumerate(failed):
                if sum(outcomes) < args.num_reset_prefixes:
                    lacking[prompt // self.P].append(prompt)
            mine, most = lacking[self.rank], max(map(len, lacking))
            if most == 0:
                break
            drawn = (mine + [prompt for prompt in local if prompt not in mine])[:most]
            rows = [(prompt - local.start) * self.G for prompt in drawn]
            samples = self._sample([self.prompt_ids[row] for row in rows])
            rewards = self._score(rows, ["seed"] * most, samples)
            self.totals["seed_draws"] += most
            outcomes_of = self.trainer._failed(rewards).view(self.processes, most).tolist()
            for prompts, outcomes in zip(lacking, outcomes_of, strict=True):
                for prompt, outcome in zip(prompts, outcomes, strict=False):
                    failed[prompt].append(outcome)
            for prompt, sample in zip(mine, samples, strict=False):
                candidates[prompt - local.start].append(sample)
        return candidates, failed

    def _localize(
        self, candidates: list[list[Sample]], chosen: list[tuple[int, int]]
    ) -> dict[tuple[int, int], Localized]:
        """Those of `chosen` (failed candidates of all processes: prompt, candidate) that are this process's."""
        trainer, owners = self.trainer, [prompt // self.P for prompt, _ in chosen]
        mine = [key for key, owner in zip(chosen, owners, strict=True) if owner == self.rank]
        sources, failed = [], []
        for prompt, candidate in mine:
            sample = candidates[prompt % self.P][candidate]
            steps = split_steps(sample.ids, trainer._decode_exactly, trainer._step_delimiter, end_ids=trainer._end_ids)
            sources.append((sample, steps))
            row = self.inputs[prompt % self.P * self.G]
            columns = {name: value for name, value in row.items() if name != "prompt"}
            failed.append(FailedCompletion(row["prompt"], tuple(step.text for step in steps), columns))
        answers = self._first_errors(failed, max((owners.count(owner) for owner in set(owners)), default=0))
        return {
            key: Localized(sample, steps, answer)
            for key, (sample, steps), answer in zip(mine, sources, answers, strict=True)
        }

    def _cut_prefixes(self, localized: dict[tuple[int, int], Localized]) -> dict[int | None, Sample]:
        """This process's prefixes by the index of their seed; `cuts` has where they were cut."""
        prefixes: dict[int | None, Sample] = {}
        for index, seed in enumerate(self.plan.seeds):
            if seed.prompt // self.P != self.rank:
                continue
            sample, steps, first_error = localized[seed.prompt, seed.candidate]
            offset = self.trainer.args.reset_offset
            reset = choose_reset(first_error, len(steps), uniform=seed.uniform, reset_offset=offset)
            prefixes[index] = sample.first(steps[reset.step - 1].start if steps else 0)
            self.cuts[index] = Cut(steps, first_error, reset)
        return prefixes

    def _first_errors(self, failed: list[FailedCompletion], most: int) -> list[int | None]:
        """First errors, None where unknown. `most`: the largest number of failed completions of any process."""
        trainer, args = self.trainer, self.trainer.args
        if trainer._localizer == "random":
            return [None] * len(failed)
        if callable(trainer._localizer):
            return call_localizer(trainer._localizer, failed)
        if most == 0:
            return []
        template = args.localization_template or DEFAULT_TEMPLATE
        asked = [format_localization_prompt(one, template) for one in failed]
        # Models that are split over processes generate in lockstep: who has less to ask fills up with a prompt.
        ids = (trainer._token_ids(asked) if asked else []) + [self.prompt_ids[0]] * (most - len(asked))
        answers = trainer._sample(ids, args.localization_max_tokens, args.localization_temperature)[: len(failed)]
        self.totals["localization_tokens"] += sum(len(answer.ids) for answer in answers)
        texts = [trainer._tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]
        return [parse_localization(text, len(one.steps)) for text, one in zip(texts, failed, strict=True)]

    def _sample(self, prompt_ids: list[list[int]], max_tokens: int | None = None) -> list[Sample]:
        samples = self.trainer._sample(prompt_ids, max_tokens or self.T)
        self.totals["generated_tokens"] += sum(len(sample.ids) for sample in samples)
        return samples

    def _score(self, rows: list[int], roles: list[str], samples: list[Sample] | None = None) -> torch.Tensor:
        """Rewards of all processes' rows. What reward functions log about trained ones becomes columns of the table."""
        trained = samples is None
        chosen = [self.samples[row] for row in rows] if samples is None else samples
        inputs = [{**self.inputs[row], "completion_role": role} for row, role in zip(rows, roles, strict=True)]
        prompt_ids = [self.prompt_ids[row] for row in rows]
        rewards, columns = self.trainer._score(inputs, prompt_ids, [sample.ids for sample in chosen])
        for name, values in ({"completion_role": roles} | columns).items() if trained else ():
            column = self.columns.setdefault(name, [None] * len(self.inputs))
            # As TRL's table, which holds a batch: of a column that was logged twice, the values that came last.
            for row, value in zip_longest(rows, values[-len(rows) :]):
                column[row] = value
        return rewards

    def _measure(self, named: list[bool]) -> None:
        """`named`: for every failure of this process that was localized, whether a step was named."""
        resets = [(cut.reset, len(cut.steps)) for cut in self.cuts.values()]
        everyone = gather_object([(resets, named, self.totals)])
        # A reward that is not there fails nobody, and says nothing of who passed.
        scored = (~self.trainer._unscored(self.rewards)).tolist()
        outcomes = zip(self.trainer._failed(self.rewards).tolist(), scored, strict=True)
        passed = [not failed if known else None for failed, known in outcomes]
        all_resets = [reset for resets, _, _ in everyone for reset in resets]
        all_named = [one for _, named, _ in everyone for one in named]
        self.metrics |= reset_metrics(self.plan, passed, all_resets, all_named)
        for name in self.totals:
            self.metrics[f"reset/{name}"] = sum(totals[name] for _, _, totals in everyone)
        if self.trainer._localizer == "random":
            for name in ("reset/parse_rate", "reset/fallback_count"):  # nobody was asked
                self.metrics.pop(name, None)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        name = f"reset/seconds_{phase}"
        self.metrics[name] = self.metrics.get(name, 0.0) + time.perf_counter() - start
