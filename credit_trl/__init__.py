"""Train language models by RL with finer credit assignment, in trainers that take the place of TRL's."""

from .evaluation.callback import PassAtKCallback
from .resets.config import SRPOConfig
from .resets.trainer import SRPOTrainer
from .srpo_trace import SRPOTraceConfig, SRPOTraceTrainer
from .traces.config import TraceConfig
from .traces.grpo_lambda import GRPOLambdaConfig, GRPOLambdaTrainer
from .traces.s_trace import STraceConfig, STraceTrainer
from .traces.trainer import TraceTrainer
from .visualization import (
    Continuation,
    CreditHeatmapCallback,
    Picture,
    credit_heatmap,
    reset_tree,
    token_credit,
    token_texts,
)

__version__ = "0.1.0"

__all__ = [
    "Continuation",
    "CreditHeatmapCallback",
    "GRPOLambdaConfig",
    "GRPOLambdaTrainer",
    "PassAtKCallback",
    "Picture",
    "SRPOConfig",
    "SRPOTraceConfig",
    "SRPOTraceTrainer",
    "SRPOTrainer",
    "STraceConfig",
    "STraceTrainer",
    "TraceConfig",
    "TraceTrainer",
    "credit_heatmap",
    "reset_tree",
    "token_credit",
    "token_texts",
]
