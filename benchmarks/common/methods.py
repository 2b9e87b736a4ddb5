"""List the methods that the benchmarks compare: those of the command line at their own options, and variants.

GRPO runs with TRL's default loss (`loss_type="dapo"`: a mean over the batch's tokens), which the trace methods share.
GSPO, GMPO and the reset methods average over each completion first (`loss_type="grpo"`), as their papers do.
"""

import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from credit_trl.cli.methods import METHODS as TABLE
from credit_trl.resets.localization import FailedCompletion
from credit_trl.testbed import LOCALIZATION_TEMPLATE, Problem, first_error


@dataclass(frozen=True)
class Method:
    trainer: type[GRPOTrainer]
    config: type[GRPOConfig]
    options: dict[str, Any] = field(default_factory=dict)  # fields of the config
    localizer: Callable | None = None
    copies: int = 1  # of each problem, one after the other

    def make_trainer(self, model, reward, options: dict[str, Any], **arguments) -> GRPOTrainer:
        """Return the method's trainer, which prints no log. Its own options override those of the run."""
        if self.localizer is not None:
            arguments["localizer"] = self.localizer
        trainer = self.trainer(model, reward, args=self.config(**options | self.options), **arguments)
        trainer.remove_callback(PrinterCallback)
        return trainer


def oracle(failed: list[FailedCompletion]) -> list[int | None]:
    """Return the testbed's truth about the first wrong step."""
    return [first_error(Problem.parse(completion.problem), completion.completion) for completion in failed]


def first_step(failed: list[FailedCompletion]) -> list[int | None]:
    """Return the first step of each: its prefix is empty, and the continuations are fresh completions."""
    return [1] * len(failed)


def noisy_oracle(hit_rate: float) -> Callable[[list[FailedCompletion]], list[int | None]]:
    """Return a localizer that names the first wrong step with probability `hit_rate`, and otherwise a random step.

    What is drawn depends on the completion alone: at a higher hit rate the answers that were right stay right.
    """

    def localizer(failed: list[FailedCompletion]) -> list[int | None]:
        answers = []
        for completion, truth in zip(failed, oracle(failed), strict=True):
            draws = random.Random(f"{completion.problem} {completion.completion}")
            hit, step = draws.random() < hit_rate, draws.randint(1, len(completion.steps))
            answers.append(truth if hit else step)
        return answers

    return localizer


def prm(solutions: int) -> Callable[[list[FailedCompletion]], list[int | None]]:
    """Return the testbed's process reward model of `solutions` labelled solutions, which the first call loads."""

    @functools.cache
    def load() -> Callable:
        from benchmarks.localizers.prm import prm_localizer  # here, since it measures with these methods

        return prm_localizer(solutions)

    return lambda failed: load()(failed)


def _of(name: str, localizer: Callable | None = None, **options: Any) -> Method:
    """Return the command line's method `name` with further options."""
    method = TABLE[name]
    return Method(method.trainer, method.config, method.options | options, localizer)


def _srpo(prefixes: int, suffixes: int, localizer: Callable | None = None, name: str = "srpo", **options) -> Method:
    return _of(
        name,
        localizer,
        num_reset_prefixes=prefixes,
        suffixes_per_prefix=suffixes,
        localization_template=LOCALIZATION_TEMPLATE,
        localization_max_tokens=6,  # \boxed{h} and the end are 4 of the testbed's tokens
        **options,
    )


# TRL's GMPO clips log ratios at 0.4, as its paper recommends; `epsilon` here bounds the ratio itself.
_GMPO_BOUNDS = dict(epsilon=1 - math.exp(-0.4), epsilon_high=math.exp(0.4) - 1)

# Where the credit of a trace goes: to the token itself alone, or to all that enter it, unnormalized.
_CREDIT = {
    "own gradient": dict(trace_gradient="own"),
    "unnormalized": dict(trace_normalize=False),
}
# CTPO (arXiv 2605.07331) bounds the log of its cumulative ratio by -0.025 sqrt(t) and 0.05 sqrt(t), and by the latter
# under a negative advantage too. TRL has one bound for all positions: here that of t = 37, the middle of 12 steps.
_CTPO_BOUNDS = dict(
    epsilon=1 - math.exp(-0.025 * 37**0.5), epsilon_high=math.exp(0.05 * 37**0.5) - 1, delta=math.exp(0.05 * 37**0.5)
)

METHODS = {
    "grpo": _of("grpo"),
    # What reset groups and S-trace change along with what they are for: groups of 4 under the loss of the SRPO paper,
    # and a loss on the same high-entropy tokens as S-trace's, by TRL's own option.
    "grpo in fours": _of("grpo", num_generations=4, loss_type="grpo"),
    # Two groups of 4 for each problem in place of one of 8, as under resets. TRL's shuffling would part the copies.
    "grpo in two fours": replace(_of("grpo", num_generations=4, loss_type="grpo", shuffle_dataset=False), copies=2),
    "grpo top entropy": _of("grpo", top_entropy_quantile=0.2),
    # What could explain S-trace's and GMPO's results with several steps on a batch: their ratios are seldom clipped, or
    # stay near 1, also where GRPO does not clip: above 1 under a negative advantage. `delta` bounds these in GRPO.
    "grpo unclipped": _of("grpo", epsilon=10.0),
    "grpo epsilon 0.1": _of("grpo", epsilon=0.1),
    "grpo two-sided": _of("grpo", delta=1.5),
    # GRPO-lambda's floor under negative advantages without its trace, and below its trace without the floor
    "grpo floored": _of("grpo_lambda", trace_lambda=0.0),
    "grpo_lambda recent unfloored": _of("grpo_lambda", negative_advantage_floor=None),
    "gspo": _of("gspo"),
    "gmpo": _of("s_trace", trace_kernel="uniform", trace_entropy_fraction=1.0, loss_type="grpo", **_GMPO_BOUNDS),
    "p_trace": _of("p_trace"),
    "s_trace": _of("s_trace"),
    **{f"s_trace {decay}": _of("s_trace", trace_lambda=decay) for decay in (0.9, 0.99)},  # lambda as given, not tuned
    **{
        f"{name} {credit}": _of(name, **options)
        for name in ("p_trace", "s_trace")
        for credit, options in _CREDIT.items()
    },
    **{f"{name} 0.5": _of(name, trace_lambda=0.5) for name in ("p_trace", "s_trace")},
    # CTPO but for its bounds: the product of all ratios up to a token, of which the token's own alone has a gradient.
    "cumulative": _of(
        "grpo_lambda", trace_lambda=1.0, trace_gradient="own", negative_advantage_floor=None, **_CTPO_BOUNDS
    ),
    "grpo_lambda recent": _of("grpo_lambda"),
    "grpo_lambda both": _of("grpo_lambda", trace_kernel="both"),
    "grpo_lambda advantage": _of("grpo_lambda", trace_target="advantage"),
    "grpo_lambda both advantage": _of("grpo_lambda", trace_kernel="both", trace_target="advantage"),
    "rrpo": _of("rrpo"),
    "srpo 1x4": _srpo(1, 4),
    "srpo 1x4 first step": _srpo(1, 4, first_step),  # whose second group has fresh completions, of the same failures
    "srpo 1x4 oracle": _srpo(1, 4, oracle),
    "srpo 1x4 furthest": _srpo(1, 4, seed_selection="furthest"),
    "srpo 1x4 oracle furthest": _srpo(1, 4, oracle, seed_selection="furthest"),
    "srpo 2x4": _srpo(2, 4),
    "srpo 2x4 oracle": _srpo(2, 4, oracle),
    "srpo 1x8": _srpo(1, 8),
    "srpo 1x8 oracle": _srpo(1, 8, oracle),
    "srpo 1x4 s_trace": _srpo(1, 4, name="srpo_s_trace"),
    **{f"srpo 1x4 votes {votes}": _srpo(1, 4, localization_votes=votes) for votes in (3, 5, 9)},
    "srpo 1x4 prm 500": _srpo(1, 4, prm(500)),
    "srpo 1x4 prm 500 furthest": _srpo(1, 4, prm(500), seed_selection="furthest"),
    # What a localizer is worth: hit rate 1 is the oracle above, and 0 with any failure is RRPO.
    **{f"srpo 1x4 oracle {rate}": _srpo(1, 4, noisy_oracle(rate)) for rate in (0, 0.25, 0.5, 0.75)},
    **{
        f"srpo 1x4 oracle {rate} furthest": _srpo(1, 4, noisy_oracle(rate), seed_selection="furthest")
        for rate in (0, 0.25, 0.5, 0.75)
    },
}
