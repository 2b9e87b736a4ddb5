"""pass@k while a model trains, sampled with the trainer's own engine."""

from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from trl import GRPOTrainer

from ..generation.engines import decode, own_random_state
from .report import summarize
from .scoring import score
from .tasks import scorer_of


class PassAtKCallback(TrainerCallback):
    """Logs pass@k, mean@N and maj@N on held-out problems before the first step and every `every` steps.

        trainer.add_callback(PassAtKCallback(trainer, "testbed", load_benchmark("testbed", limit=64), every=20))

    Completions come from whichever engine the trainer generates with (transformers or vLLM), sampled as in training.
    The training goes on as without the callback: random states of Python, NumPy and torch are put back. Only a vLLM
    server keeps random numbers of its own, which an evaluation uses up.

    Values are logged as `eval_<benchmark>_pass@8`, which dashboards show as `eval/<benchmark>_pass@8`, with the ends of
    the 95% intervals over problems as `..._low` and `..._high`.

    Args:
        trainer: a `GRPOTrainer`, of TRL or of this package, without tools and environments.
        benchmark: the name of the benchmark, which says how its completions are scored.
        problems: as `load_benchmark` makes them.
        num_samples: N, completions for each problem.
        every: steps between evaluations.
        batch_size: completions of a process at a time.
        seed: of the sampling, the same at every evaluation.

    Raises `ValueError` for an unknown benchmark, an empty data set, and numbers below 1.
    """

    def __init__(
        self,
        trainer: GRPOTrainer,
        benchmark: str,
        problems: Dataset,
        *,
        num_samples: int = 8,
        every: int = 50,
        batch_size: int = 128,
        seed: int = 0,
    ):
        if min(num_samples, every, batch_size) < 1 or len(problems) == 0:
            raise ValueError(
                "num_samples, every and batch_size must be at least 1, and there must be a problem; got "
                f"{num_samples=}, {every=}, {batch_size=} and {len(problems)} problems"
            )
        self.trainer: Any = trainer  # generating is private in TRL
        self.benchmark = benchmark
        self.scorer = scorer_of(benchmark)
        self.problems = problems
        self.num_samples = num_samples
        self.every = every
        self.batch_size = batch_size
        self.seed = seed

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self._evaluate()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self._evaluate()

    def _evaluate(self) -> None:
        summary = summarize(self._sample(), self.num_samples, with_votes=self.scorer != "code")
        values: dict[str, float] = {}
        for metric, (estimate, low, high) in summary["metrics"].items():
            name = f"eval_{self.benchmark}_{metric}"
            values |= {name: estimate, f"{name}_low": low, f"{name}_high": high}
        values[f"eval_{self.benchmark}_mean_tokens"] = summary["mean_tokens"]
        # TRL's own `log` would end the running means of the training metrics here, and any log takes the place of the
        # training's own in this step.
        should_log = self.trainer.control.should_log
        Trainer.log(self.trainer, values)
        self.trainer.control.should_log = should_log

    def _sample(self) -> list[dict[str, Any]]:
        """The completions of all processes, scored, by problem."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        rows = [(index, row) for index, row in enumerate(self.problems) for _ in range(self.num_samples)]
        # Engines that span processes want every one of them to call as often: some repeat the last completions.
        share = -(-len(rows) // accelerator.num_processes)
        own = [rows[min(place, len(rows) - 1)] for place in self._places(share)]
        results = []
        with own_random_state(trainer.model, self.seed + accelerator.process_index):
            starts = range(0, share, self.batch_size)
            quiet = trainer.args.disable_tqdm or not accelerator.is_main_process
            for start in tqdm(starts, desc=self.benchmark, disable=quiet, leave=False):
                results += self._complete(own[start : start + self.batch_size])
        return gather_object(results)[: len(rows)]

    def _places(self, share: int) -> range:
        first = self.trainer.accelerator.process_index * share
        return range(first, first + share)

    def _complete(self, batch: list[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
        trainer = self.trainer
        rows = [row for _, row in batch]
        prompts = [row["prompt"] for row in rows]
        prompt_ids = [list(ids) for ids in trainer._tokenize_prompts(prompts)[0]]
        completion_ids, _ = trainer._generate_single_turn(prompt_ids, None, {}, 1)
        completion_ids = [list(ids) for ids in completion_ids]
        scores, votes = score(self.scorer, decode(trainer._tokenizer, prompts, completion_ids), rows)
        return [
            {
                "problem": problem,
                "score": value,
                "answer": vote,
                "num_tokens": len(ids),
                "truncated": ids[-1] not in trainer.eos_token_ids,
            }
            for (problem, _), ids, value, vote in zip(
                batch, completion_ids, scores, votes or [None] * len(batch), strict=True
            )
        ]
