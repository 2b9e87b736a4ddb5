"""Run `train.py` with a vLLM that starts fast and shares its GPU: `python -m benchmarks.real_model.run OPTIONS`.

The options are those of `train.py`. Without a GPU, vLLM's CPU build runs in float32, for rehearsals.
"""

import os
import runpy
import sys
from typing import Any

import torch

from scripts.vllm_on_cpu import ENVIRONMENT, use_plain_engine

# Decoding runs as CUDA graphs and nothing is compiled: an engine starts in 15 s.
ON_GPU: dict[str, Any] = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}
ON_CPU: dict[str, Any] = {"dtype": "float32", "block_size": 32}


def engine_options(gpu_share: float = 0.2) -> dict[str, Any]:
    """Return options of `vllm.LLM` for keys and values that take `gpu_share` of the GPU's memory, in (0, 1].

    vLLM would find the size by measuring the GPU, and take what other processes allocate meanwhile for its own.
    Call it before vLLM is imported, which reads the environment that a CPU needs.
    """
    if not torch.cuda.is_available():
        os.environ.update(ENVIRONMENT)
        return ON_CPU
    size = int(gpu_share * torch.cuda.mem_get_info()[1])
    return ON_GPU | {"gpu_memory_utilization": gpu_share, "kv_cache_memory_bytes": size}


def use_fast_engine() -> None:
    """Let the trainers of this process start vLLM with `engine_options`. Call it before TRL's trainers are imported."""
    if torch.cuda.is_available():
        from trl.generation import vllm_generation  # here, since it imports vLLM

        engine = vllm_generation.LLM
        vllm_generation.LLM = lambda **of_trl: engine(**of_trl | engine_options(of_trl["gpu_memory_utilization"]))
    else:
        use_plain_engine(**engine_options())


def main() -> None:
    use_fast_engine()
    sys.argv[0] = "train.py"
    runpy.run_path("train.py", run_name="__main__")


if __name__ == "__main__":
    main()
