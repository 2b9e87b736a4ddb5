"""Assign credit by eligibility traces in the importance ratio or on the advantage: S-trace, P-trace, GRPO-lambda."""

from .config import TraceConfig
from .grpo_lambda import GRPOLambdaConfig, GRPOLambdaTrainer
from .kernels import KERNELS, eligibility_trace, trace_weights
from .s_trace import STraceConfig, STraceTrainer
from .trainer import TraceTrainer
from .trust_region import token_trust_region

__all__ = [
    "KERNELS",
    "GRPOLambdaConfig",
    "GRPOLambdaTrainer",
    "STraceConfig",
    "STraceTrainer",
    "TraceConfig",
    "TraceTrainer",
    "eligibility_trace",
    "token_trust_region",
    "trace_weights",
]
