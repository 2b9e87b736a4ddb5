"""The methods that the benchmarks compare, each at its own defaults.

GRPO runs with TRL's default loss (`loss_type="dapo"`: a mean over the batch's tokens), which the trace methods share.
GSPO, GMPO and the reset methods average over each completion first (`loss_type="grpo"`), as their papers do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from credit_trl import (
    GRPOLambdaConfig,
    GRPOLambdaTrainer,
    SRPOConfig,
    SRPOTraceConfig,
    SRPOTraceTrainer,
    SRPOTrainer,
    STraceConfig,
    STraceTrainer,
)
from credit_trl.resets.localization import FailedCompletion
from credit_trl.testbed import LOCALIZATION_TEMPLATE, Problem, first_error


@dataclass(frozen=True)
class Method:
    trainer: type[GRPOTrainer]
    config: type[GRPOConfig]
    options: dict[str, Any] = field(default_factory=dict)  # of the config
    localizer: Callable | None = None

    def make_trainer(self, model, reward, options: dict[str, Any], **arguments) -> GRPOTrainer:
        """The method's trainer, which prints no log. Its own options override those of the run."""
        if self.localizer is not None:
            arguments["localizer"] = self.localizer
        trainer = self.trainer(model, reward, args=self.config(**options | self.options), **arguments)
        trainer.remove_callback(PrinterCallback)
        return trainer


def oracle(failed: list[FailedCompletion]) -> list[int | None]:
    """The testbed's truth about the first wrong step."""
    return [first_error(Problem.parse(one.problem), one.completion) for one in failed]


def _srpo(
    prefixes: int, suffixes: int, localizer: Callable | None = None, trainer=SRPOTrainer, config=SRPOConfig, **options
) -> Method:
    return Method(
        trainer,
        config,
        dict(
            num_reset_prefixes=prefixes,
            suffixes_per_prefix=suffixes,
            localization_template=LOCALIZATION_TEMPLATE,
            localization_max_tokens=6,  # \boxed{h} and the end are 4 of the testbed's tokens
            **options,
        ),
        localizer,
    )


# TRL's GMPO clips log ratios at 0.4, as its paper recommends; `epsilon` here bounds the ratio itself.
_GMPO_BOUNDS = dict(epsilon=1 - math.exp(-0.4), epsilon_high=math.exp(0.4) - 1)

METHODS = {
    "grpo": Method(GRPOTrainer, GRPOConfig),
    # What reset groups and S-trace change along with what they are for: groups of 4 under the loss of the SRPO paper,
    # and a loss on the same high-entropy tokens as S-trace's, by TRL's own option.
    "grpo in fours": Method(GRPOTrainer, GRPOConfig, dict(num_generations=4, loss_type="grpo")),
    "grpo top entropy": Method(GRPOTrainer, GRPOConfig, dict(top_entropy_quantile=0.2)),
    # GRPO-lambda's floor under negative advantages without its trace, and below its trace without the floor
    "grpo floored": Method(GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_lambda=0.0)),
    "grpo_lambda recent unfloored": Method(GRPOLambdaTrainer, GRPOLambdaConfig, dict(negative_advantage_floor=None)),
    "gspo": Method(GRPOTrainer, GRPOConfig, dict(importance_sampling_level="sequence", loss_type="grpo")),
    "gmpo": Method(
        STraceTrainer,
        STraceConfig,
        dict(trace_kernel="uniform", trace_entropy_fraction=1.0, loss_type="grpo", **_GMPO_BOUNDS),
    ),
    "p_trace": Method(STraceTrainer, STraceConfig, dict(trace_entropy_fraction=1.0)),
    "s_trace": Method(STraceTrainer, STraceConfig),
    "grpo_lambda recent": Method(GRPOLambdaTrainer, GRPOLambdaConfig),
    "grpo_lambda both": Method(GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_kernel="both")),
    "grpo_lambda advantage": Method(GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_target="advantage")),
    "grpo_lambda both advantage": Method(
        GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_kernel="both", trace_target="advantage")
    ),
    "rrpo": Method(SRPOTrainer, SRPOConfig, dict(localizer="random")),
    "srpo 1x4": _srpo(1, 4),
    "srpo 1x4 oracle": _srpo(1, 4, oracle),
    "srpo 1x4 furthest": _srpo(1, 4, seed_selection="furthest"),
    "srpo 1x4 oracle furthest": _srpo(1, 4, oracle, seed_selection="furthest"),
    "srpo 2x4": _srpo(2, 4),
    "srpo 2x4 oracle": _srpo(2, 4, oracle),
    "srpo 1x8": _srpo(1, 8),
    "srpo 1x8 oracle": _srpo(1, 8, oracle),
    "srpo 1x4 s_trace": _srpo(1, 4, trainer=SRPOTraceTrainer, config=SRPOTraceConfig),
}
