"""Define the defaults and the trainer of GRPO-lambda (arXiv 2510.00194)."""

import textwrap
from dataclasses import dataclass, field

from .config import TraceConfig
from .trainer import TraceTrainer


@dataclass
class GRPOLambdaConfig(TraceConfig):
    """Configure GRPO-lambda (arXiv 2510.00194): unnormalized traces in the ratio or on the advantage.

    The field below has GRPO-lambda's default; the others are those of `TraceConfig` and of TRL's `GRPOConfig`.

    Args:
        negative_advantage_floor (`float | None`, default -0.1): value, at most 0, to which lower advantages are raised.
            None switches it off.
    """

    negative_advantage_floor: float | None = field(
        default=-0.1,
        metadata={
            "help": "Raise negative advantages to at least this value, at most 0. -0.1 is GRPO-lambda's (arXiv "
            "2510.00194), against accumulated log-probabilities under a negative advantage. None: off; an independent "
            "reproduction found that the floor together with scale_rewards='group' kept hard problems from being "
            "learned."
        },
    )


class GRPOLambdaTrainer(TraceTrainer):
    """Train with GRPO-lambda (arXiv 2510.00194): `recent` or `both` traces and floored negative advantages.

    The traces are in the ratio (eps-trace, the default) or on the advantage (eps-weight). Defaults:
    `GRPOLambdaConfig`.
    """

    config_class = GRPOLambdaConfig
    _tag_names = ["trl", "grpo-lambda"]
    _name = "GRPO-lambda"
    _paper = {
        "title": "GRPO-λ: Credit Assignment improves LLM Reasoning",
        "id": "2510.00194",
        "citation": textwrap.dedent("""\
            @article{parthasarathi2025grpolambda,
                title        = {{GRPO-$\\lambda$: Credit Assignment improves LLM Reasoning}},
                author       = {Prasanna Parthasarathi and Mathieu Reymond and Boxing Chen and Yufei Cui and
                                Sarath Chandar},
                year         = 2025,
                eprint       = {arXiv:2510.00194},
            }"""),
    }
