"""Sample completions for prompts: from a transformers model, from vLLM, or with a trainer's own engine."""

from .engines import Completion, Engine, Sampling, TransformersEngine, VLLMEngine, decode, encode
from .sampling import generate
from .trainer_engine import TrainerEngine

__all__ = [
    "Completion",
    "Engine",
    "Sampling",
    "TrainerEngine",
    "TransformersEngine",
    "VLLMEngine",
    "decode",
    "encode",
    "generate",
]
