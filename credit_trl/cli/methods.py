"""Define the one table of methods, which `train.py --method`, tests, benchmarks and the docs' tables follow."""

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from ..resets.config import SRPOConfig
from ..resets.trainer import SRPOTrainer
from ..srpo_trace import SRPOTraceConfig, SRPOTraceTrainer
from ..testbed import LOCALIZATION_TEMPLATE
from ..traces.grpo_lambda import GRPOLambdaConfig, GRPOLambdaTrainer
from ..traces.s_trace import STraceConfig, STraceTrainer


@dataclass(frozen=True)
class Method:
    """Hold a way to give credit: a trainer, its configuration, and the values that make it this method.

    Args:
        title: name in prose.
        trainer: class of the trainer.
        config: class of the configuration that `trainer` takes.
        paper: arXiv number.
        description: what a token's credit is, for the table of the README.
        options: fields of `config` that make it this method, where `config` alone would be another one.
        defaults: fields of `config` at the paper's values, where those are neither TRL's nor `config`'s. They hold on
            the command line; a recipe and an option override them.
        testbed: fields of `config` for the testbed's own model, where the others do not suit it.
    """

    title: str
    trainer: type[GRPOTrainer]
    config: type[GRPOConfig]
    paper: str
    description: str
    options: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    testbed: dict[str, Any] = field(default_factory=dict)


# The testbed's model answers \boxed{h} and nothing else.
_TESTBED_LOCALIZATION = {"localization_template": LOCALIZATION_TEMPLATE, "localization_max_tokens": 4}

METHODS = {
    # TRL's defaults stay, with which the methods are compared. The paper's are beta 0.04, loss_type "grpo" (a mean over
    # each completion), 64 completions of a prompt, a learning rate of 1e-6 and one update on a batch.
    "grpo": Method(
        "GRPO", GRPOTrainer, GRPOConfig, "2402.03300", "advantage of its completion, the same for every token"
    ),
    "gspo": Method(
        "GSPO",
        GRPOTrainer,
        GRPOConfig,
        "2507.18071",
        "as GRPO, with one importance ratio for the whole completion",
        options={"importance_sampling_level": "sequence", "loss_type": "grpo"},
        # The paper's, which makes four updates on a batch.
        defaults={"epsilon": 3e-4, "epsilon_high": 4e-4},
        # The mean ratio of a short completion moves more.
        testbed={"epsilon": 0.2, "epsilon_high": 0.2},
    ),
    # The trace in the ratio (eps-trace), `recent`, lambda 0.99, gamma 1 and the floor of -0.1 are the paper's. Its
    # other forms are --trace_kernel both and --trace_target advantage (eps-weight).
    "grpo_lambda": Method(
        "GRPO-lambda",
        GRPOLambdaTrainer,
        GRPOLambdaConfig,
        "2510.00194",
        "as GRPO, but its importance ratio becomes the product of all ratios up to it, with exponents that decay with "
        "distance (lambda 0.99); negative advantages are raised to at least -0.1",
    ),
    "p_trace": Method(
        "P-trace",
        STraceTrainer,
        STraceConfig,
        "2605.05965",
        "as GRPO, but its importance ratio becomes the geometric mean of all ratios up to it, with weights that decay "
        "with distance (lambda 0.99); each ratio is clipped before the mean",
        options={"trace_entropy_fraction": 1.0},
    ),
    # Random steps, 1x4 and a mean over each completion are the paper's. See recipes/srpo_reference.yaml for the rest.
    "rrpo": Method(
        "RRPO",
        SRPOTrainer,
        SRPOConfig,
        "2605.25507",
        "as SRPO, but restarted before a random step",
        options={"localizer": "random"},
    ),
    # The mask on low-entropy tokens is the paper's; the fraction 0.2 is from arXiv 2506.01939, the rest our reading.
    "s_trace": Method(
        "S-trace",
        STraceTrainer,
        STraceConfig,
        "2605.05965",
        "as P-trace, but the mean is over the 20% of tokens with the highest entropy",
    ),
    # The question to the policy, 1x4 and a mean over each completion are the paper's, as for RRPO.
    "srpo": Method(
        "SRPO",
        SRPOTrainer,
        SRPOConfig,
        "2605.25507",
        "advantage of its completion in its group; half of a prompt's completions form a group that restarts a failed "
        "one just before the step that the model names as wrong",
        testbed=_TESTBED_LOCALIZATION,
    ),
    "srpo_s_trace": Method(
        "SRPO with S-trace",
        SRPOTraceTrainer,
        SRPOTraceConfig,
        "2605.25507",
        "advantages of SRPO with importance ratios of S-trace, whose traces start after the prefix",
        testbed=_TESTBED_LOCALIZATION,
    ),
}
