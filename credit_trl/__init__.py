"""Finer credit for language-model RL, as TRL trainers."""

from .configs import GRPOLambdaConfig, STraceConfig, TraceConfig
from .trace_trainer import GRPOLambdaTrainer, STraceTrainer, TraceTrainer

__version__ = "0.1.0"

__all__ = [
    "GRPOLambdaConfig",
    "GRPOLambdaTrainer",
    "STraceConfig",
    "STraceTrainer",
    "TraceConfig",
    "TraceTrainer",
]
