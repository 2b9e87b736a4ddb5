"""One way to sample completions for prompts: from a transformers model or from vLLM."""

from .engines import Completion, Engine, Sampling, TransformersEngine, VLLMEngine, decode, encode, generate

__all__ = [
    "Completion",
    "Engine",
    "Sampling",
    "TransformersEngine",
    "VLLMEngine",
    "decode",
    "encode",
    "generate",
]
