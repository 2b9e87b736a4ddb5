"""Run the phases of a rollout with reset groups, each batched over a process's prompts and in lockstep on all.

1. Base: the base group of every prompt is sampled and scored. Untrained completions are drawn where seeds have to be.
2. Localization: every failed completion that was chosen as a seed is cut just before the step to reset to. To choose
   the furthest ones, all are localized.
3. Suffixes: all other slots, each after the prefix of its seed, with what is left of the length.

Every process makes the same plan from all processes' rewards, and then generates and scores equally many rows. What
samples and what scores is handed in: this module knows no trainer.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from ..generation.samples import Sample
from .groups import GroupPlan, Slot, furthest_failures, plan_groups, split_group
from .interface import RolloutEngine, Score, Scores
from .localization import DEFAULT_TEMPLATE, FailedCompletion, Localizer, first_errors, format_localization_prompt
from .metrics import reset_metrics
from .records import CompletionRecord, Localized, SeedRecord
from .seeds import draw_seeds
from .steps import Delimiter, split_steps

if TYPE_CHECKING:
    from .config import SRPOConfig


@dataclass
class Rollout:
    """Roll out a process's share of a generation batch: `run` samples, scores and records it.

    Args:
        engine: what samples completions.
        score: function that scores rows of the data (with a column `completion_role`), given the token ids of their
            prompts and completions.
        args: configuration of the trainer.
        num_generations, max_completion_length: size of a group and length in tokens, as TRL read them from `args`
            when the trainer was made. What is set on `args` later does not change them.
        inputs: rows of the share, `num_generations` in succession for each prompt.
        localizer, step_delimiter: as in `SRPOTrainer`.
        correctness: column of the rewards that says what failed.
        step: number of the generation batch, which decides the plan's draws together with `args.seed`.
        rank, processes: index of this process and number of processes.
    """

    engine: RolloutEngine
    score: Score
    args: "SRPOConfig"
    num_generations: int
    max_completion_length: int
    inputs: list[dict[str, Any]]
    localizer: Localizer
    step_delimiter: Delimiter
    correctness: int = 0
    step: int = 0
    rank: int = 0
    processes: int = 1
    samples: list[Sample] = field(default_factory=list)  # trained completions, prefixes included
    records: list[CompletionRecord] = field(default_factory=list)  # records of `samples`
    rewards: torch.Tensor = field(init=False)  # (trained completions of all processes, functions)
    columns: dict[str, list] = field(default_factory=dict)  # columns of the table of completions
    logged: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # metric -> value per completion
    metrics: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # metrics of all processes
    plan: GroupPlan = field(init=False)  # plan for all processes

    def __post_init__(self):
        self.G, self.T = self.num_generations, self.max_completion_length
        self.P = len(self.inputs) // self.G
        self.totals = dict.fromkeys(
            ("generated_tokens", "localization_tokens", "seed_draws"), 0.0
        )  # this process's sums

    def run(self, prompts: list) -> None:
        """Sample and score the completions of all rows, whose prompts are `prompts`, with images in their messages."""
        self.prompts = prompts
        self.inputs = [{**row, "prompt": prompt} for row, prompt in zip(self.inputs, prompts, strict=True)]
        args, rows = self.args, range(len(prompts))
        base_size, suffixes = split_group(self.G, args.num_reset_prefixes, args.suffixes_per_prefix)
        base, rest = [r for r in rows if r % self.G < base_size], [r for r in rows if r % self.G >= base_size]
        self.prompt_ids = self.engine.token_ids(prompts)
        samples: dict[int, Sample] = {}  # row -> its completion
        rewards: list[torch.Tensor] = []

        with self._timed("base"):
            if base:
                samples |= zip(base, self._complete(base), strict=True)
                rewards.append(self._score_trained(samples, base, ["base"] * len(base)))
        with self._timed("seeds"):
            if base and args.seed_source == "base":
                candidates = [[samples[start + k] for k in range(base_size)] for start in rows[:: self.G]]
                failed = self._failed(rewards[0]).view(-1, base_size).tolist()
            else:
                candidates, failed = draw_seeds(
                    self._draw, num_prompts=self.P, wanted=args.num_reset_prefixes,
                    max_attempts=args.max_seed_attempts, rank=self.rank, processes=self.processes,
                )  # fmt: skip
        localized: dict[tuple[int, int], Localized] = {}
        if args.seed_selection == "furthest":
            with self._timed("localization"):
                keys = [(prompt, number) for prompt, outcomes in enumerate(failed) for number in range(len(outcomes))]
                localized = self._localize(candidates, [key for key in keys if failed[key[0]][key[1]]])
                errors = [(key, failure.first_error) for key, failure in localized.items()]
                failed = furthest_failures(failed, dict(gather_object(errors)), args.num_reset_prefixes)
        self.plan = plan_groups(
            failed, num_generations=self.G, num_reset_prefixes=args.num_reset_prefixes, suffixes_per_prefix=suffixes,
            seed=args.seed, step=self.step,
        )  # fmt: skip
        slots = self.plan.slots[self.rank * len(rows) : (self.rank + 1) * len(rows)]
        with self._timed("localization"):
            if args.seed_selection == "random":
                localized = self._localize(candidates, [(seed.prompt, seed.candidate) for seed in self.plan.seeds])
            seeds, prefixes = self._cut(localized)
        with self._timed("suffixes"):
            kept = [prefixes.get(slots[row].seed, Sample([])) for row in rest]
            # One number for all processes: vLLM may generate for several of them in one call.
            longest = max(gather_object([self.T - min(len(prefix.ids) for prefix in kept)]))
            continuations = self._complete(rest, longest, after=[prefix.ids for prefix in kept])
            for row, prefix, suffix in zip(rest, kept, continuations, strict=True):
                samples[row] = prefix.then(suffix.first(self.T - len(prefix.ids)))
            roles = ["fresh" if slots[row].seed is None else "reset" for row in rest]
            rewards.append(self._score_trained(samples, rest, roles))

        self.samples = [samples[row] for row in rows]
        # Both phases' rewards are in the order of the processes and their prompts.
        by_prompt = [part.view(self.P * self.processes, -1, part.shape[1]) for part in rewards]
        self.rewards = torch.cat(by_prompt, dim=1).flatten(0, 1)
        self.records = self._records(slots, seeds, dict(zip(rest, kept, strict=True)))
        self.columns["reset_step"] = [record.seed and record.seed.reset.step for record in self.records]
        self._measure([failure.first_error is not None for failure in localized.values()])

    def _records(
        self, slots: Sequence[Slot], seeds: dict[int | None, SeedRecord], kept: dict[int, Sample]
    ) -> list[CompletionRecord]:
        """Return what became of this process's `slots`, whose prefixes are `kept`, by row."""
        own = self.rewards[self.rank * len(slots) : (self.rank + 1) * len(slots)]
        rewards, failures = own[:, self.correctness].tolist(), self._failed(own).tolist()
        records = []
        for row, (slot, reward, failure) in enumerate(zip(slots, rewards, failures, strict=True)):
            passed = None if math.isnan(reward) else not failure
            prefix_length = len(kept[row].ids) if row in kept else 0
            place = slot.prompt, slot.group, self.columns["completion_role"][row]
            tokens = self.prompt_ids[row], self.samples[row].ids, prefix_length
            outcome = reward, passed, seeds.get(slot.seed)
            records.append(CompletionRecord(*place, *tokens, *outcome, trains_prefix=self.args.train_prefix))
        return records

    def _draw(self, prompts: list[int]) -> tuple[list[Sample], list[list[bool]]]:
        """Draw an untrained completion for each of `prompts`, as `draw_seeds` asks."""
        rows = [prompt * self.G for prompt in prompts]
        samples = self._complete(rows)
        self.totals["seed_draws"] += len(rows)
        rewards = self._score(rows, ["seed"] * len(rows), samples).rewards
        return samples, self._failed(rewards).view(self.processes, -1).tolist()

    def _localize(
        self, candidates: list[list[Sample]], chosen: list[tuple[int, int]]
    ) -> dict[tuple[int, int], Localized]:
        """Localize this process's share of `chosen`, the (prompt, candidate) pairs of all processes."""
        engine, owners = self.engine, [prompt // self.P for prompt, _ in chosen]
        own = [key for key, owner in zip(chosen, owners, strict=True) if owner == self.rank]
        sources, failed = [], []
        for prompt, candidate in own:
            sample, row = candidates[prompt % self.P][candidate], self.inputs[prompt % self.P * self.G]
            steps = split_steps(sample.ids, engine.exact_text, self.step_delimiter, end_ids=engine.end_ids)
            sources.append((sample, steps))
            failed.append(FailedCompletion.of_row(row, tuple(step.text for step in steps)))
        most = max((owners.count(owner) for owner in set(owners)), default=0)
        template = self.args.localization_template or DEFAULT_TEMPLATE
        question = partial(format_localization_prompt, template=template, chat=engine.has_chat_template)
        answers = first_errors(self.localizer, failed, question, lambda asked: self._ask(asked, most))
        localized = zip(own, sources, answers, strict=True)
        return {key: Localized(*source, answer) for key, source, answer in localized}

    def _ask(self, asked: list, most: int) -> list[list[str]]:
        """Sample the policy's answers to each question; `most` is the largest number of questions of any process."""
        if not most:
            return []
        # Models that are split over processes generate in lockstep: who has less to ask fills up with a prompt.
        asked_by_all = asked + [asked[0] if asked else self.prompts[0]] * (most - len(asked))
        votes, rows = self.args.localization_votes, zip(asked_by_all, self.engine.token_ids(asked_by_all), strict=True)
        questions, ids = map(list, zip(*(row for row in rows for _ in range(votes)), strict=True))
        limits = self.args.localization_tokens, self.args.localization_temperature
        samples = self.engine.complete(questions, ids, *limits)[: len(asked) * votes]
        self.totals["localization_tokens"] += sum(len(sample.ids) for sample in samples)
        texts = [self.engine.plain_text(sample.ids) for sample in samples]
        return [texts[start : start + votes] for start in range(0, len(texts), votes)]

    def _cut(
        self, localized: dict[tuple[int, int], Localized]
    ) -> tuple[dict[int | None, SeedRecord], dict[int | None, Sample]]:
        """Cut this process's seeds. Return their records and their prefixes, by the seed's index in the plan."""
        own = [(index, seed) for index, seed in enumerate(self.plan.seeds) if seed.prompt // self.P == self.rank]
        options = self.args.reset_offset, self.args.localization_fallback
        cuts = {index: localized[seed.prompt, seed.candidate].cut(seed.uniform, *options) for index, seed in own}
        return {index: record for index, (record, _) in cuts.items()}, {k: prefix for k, (_, prefix) in cuts.items()}

    def _complete(
        self, rows: list[int], max_tokens: int | None = None, after: list[list[int]] | None = None
    ) -> list[Sample]:
        """Sample a completion for the prompt of each row, `after` a prefix."""
        prefixes = after or [[]] * len(rows)
        prompt_ids = [self.prompt_ids[row] + prefix for row, prefix in zip(rows, prefixes, strict=True)]
        samples = self.engine.complete([self.prompts[row] for row in rows], prompt_ids, max_tokens or self.T)
        self.totals["generated_tokens"] += sum(len(sample.ids) for sample in samples)
        return samples

    def _score(self, rows: list[int], roles: list[str], samples: list[Sample]) -> Scores:
        inputs = [{**self.inputs[row], "completion_role": role} for row, role in zip(rows, roles, strict=True)]
        return self.score(inputs, [self.prompt_ids[row] for row in rows], [sample.ids for sample in samples])

    def _score_trained(self, samples: dict[int, Sample], rows: list[int], roles: list[str]) -> torch.Tensor:
        """Score trained completions. What reward functions log about them is kept."""
        rewards, columns, metrics = self._score(rows, roles, [samples[row] for row in rows])
        for name, values in ({"completion_role": roles} | columns).items():
            column = self.columns.setdefault(name, [None] * len(self.inputs))
            # As TRL's table, which holds a batch: of a column that was logged twice, the values that came last.
            for row, value in zip_longest(rows, values[-len(rows) :]):
                column[row] = value
        for name, values in metrics.items():
            self.logged[name] += [sum(values) / len(values)] * len(rows)
        return rewards

    def _failed(self, rewards: torch.Tensor) -> torch.Tensor:
        """Return which rows' completions are wrong. One that was not scored is neither a seed nor counted as wrong."""
        return rewards[:, self.correctness] < self.args.failure_threshold

    def _measure(self, named: list[bool]) -> None:
        """Make the metrics. `named`: for each failure of this process that was localized, whether a step was named."""
        everyone = gather_object([([record.without_tokens() for record in self.records], named, self.totals)])
        records = [record for records, _, _ in everyone for record in records]
        answers = [answer for _, answers, _ in everyone for answer in answers]
        self.metrics |= reset_metrics(records, None if self.localizer == "random" else answers)
        for name in self.totals:
            self.metrics[f"reset/{name}"] = sum(totals[name] for _, _, totals in everyone)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.metrics[f"reset/seconds_{phase}"] += time.perf_counter() - start
