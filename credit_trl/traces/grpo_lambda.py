"""GRPO-lambda (arXiv 2510.00194): its defaults and its trainer."""

import textwrap
from dataclasses import dataclass, field

from .config import TraceConfig
from .trainer import TraceTrainer


@dataclass
class GRPOLambdaConfig(TraceConfig):
    """GRPO-lambda (arXiv 2510.00194): unnormalized traces, eps-trace in the ratio or eps-weight on the advantage."""

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
    """GRPO-lambda (arXiv 2510.00194): `recent` or `both` traces, in the ratio (eps-trace) or on the advantage
    (eps-weight), with negative advantages floored at -0.1. Defaults: `GRPOLambdaConfig`.
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
