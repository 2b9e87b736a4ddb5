"""pass@k while a model trains, sampled with the trainer's own engine."""

from typing import Any

from datasets import Dataset
from transformers import Trainer, TrainerCallback
from trl import GRPOTrainer

from ..generation.trainer_engine import TrainerEngine
from .report import summarize
from .run import evaluate_problems, named_scorer
from .tasks import scorer_of


class PassAtKCallback(TrainerCallback):
    """Log pass@k, mean@N and maj@N on held-out problems before the first step and every `every` steps.

        trainer.add_callback(PassAtKCallback(trainer, "testbed", load_benchmark("testbed", limit=64), every=20))

    Completions come from whichever engine the trainer generates with (transformers or vLLM), sampled as in training.
    The training goes on as without the callback: random states of Python, NumPy and torch are put back. Only a vLLM
    server keeps random numbers of its own, which an evaluation uses up.

    Values are logged as `eval_<benchmark>_pass@8`, which dashboards show as `eval/<benchmark>_pass@8`, with the ends of
    the 95% intervals over problems as `..._low` and `..._high`.

    Args:
        trainer: `GRPOTrainer` of TRL or of this package, without tools and environments.
        benchmark: name of the benchmark, which says how its completions are scored.
        problems: data set that `load_benchmark` made.
        num_samples: N, completions for each problem.
        every: steps between evaluations.
        batch_size: completions of a process at a time, rounded down to whole problems but at least one.
        seed: seed of the sampling, the same at every evaluation.

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
        self.trainer: Any = trainer  # mypy takes its `args` for the Trainer's
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
        quiet = self.trainer.args.disable_tqdm or not self.trainer.accelerator.is_main_process
        rows = evaluate_problems(
            self.problems,
            named_scorer(self.scorer),
            TrainerEngine(self.trainer, batch_size=max(self.batch_size, self.num_samples)),
            num_samples=self.num_samples,
            seed=self.seed,
            chunk_size=max(1, self.batch_size // self.num_samples),
            chat_template_kwargs=self.trainer.args.chat_template_kwargs,
            accelerator=self.trainer.accelerator,
            progress=None if quiet else self.benchmark,
        )
        summary = summarize(rows, self.num_samples, with_votes=self.scorer != "code")
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
