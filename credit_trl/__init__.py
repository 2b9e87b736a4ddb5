"""Finer credit for language-model RL, as TRL trainers."""

from .configs import GRPOLambdaConfig, STraceConfig, TraceConfig
from .reset_config import SRPOConfig
from .reset_trainer import SRPOTrainer
from .trace_trainer import GRPOLambdaTrainer, STraceTrainer, TraceTrainer

__version__ = "0.1.0"

__all__ = [
    "GRPOLambdaConfig",
    "GRPOLambdaTrainer",
    "SRPOConfig",
    "SRPOTrainer",
    "STraceConfig",
    "STraceTrainer",
    "TraceConfig",
    "TraceTrainer",
]
