"""Measure pass@k of a model on public problem sets, on the testbed and on generated tasks."""

from .callback import PassAtKCallback
from .estimators import bootstrap_interval, maj_at_k, mean_at_k, pass_at_k
from .report import markdown_table, summarize, write_results
from .run import engine_pass_rate, evaluate_problems, named_scorer, pass_rate, reward_scorer
from .scoring import score
from .tasks import BENCHMARKS, Benchmark, load_benchmark, scorer_of

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "PassAtKCallback",
    "bootstrap_interval",
    "engine_pass_rate",
    "evaluate_problems",
    "load_benchmark",
    "maj_at_k",
    "markdown_table",
    "mean_at_k",
    "named_scorer",
    "pass_at_k",
    "pass_rate",
    "reward_scorer",
    "score",
    "scorer_of",
    "summarize",
    "write_results",
]
