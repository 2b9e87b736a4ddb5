"""Refuse before a model is loaded what would fail once it is there, minutes later."""

import os
from pathlib import Path

import torch
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import get_last_checkpoint
from transformers.training_args import ParallelMode
from transformers.utils import is_liger_kernel_available
from trl import GRPOConfig
from trl.import_utils import is_vllm_available

from .usage import UsageError, usage_errors

MEMORY_ADVICE = (
    "The memory is full. Less is needed with a smaller per_device_train_batch_size (and gradient_accumulation_steps "
    "raised by as much), a smaller max_completion_length, LoRA (--use_peft true), or under vLLM a smaller "
    "vllm_gpu_memory_utilization. `python -m scripts.memory_plan` says which of these fits."
)


def check_before_loading(training_args: GRPOConfig) -> None:
    """Check where a run writes, resumes and reports to, its packages and its processes.

    `resume_from_checkpoint` that is "true" becomes True, the last checkpoint of the output folder.

    Raises `UsageError`.
    """
    check_output("output_dir", str(training_args.output_dir))
    _check_checkpoint(training_args)
    if training_args.use_vllm and not is_vllm_available():
        raise UsageError("use_vllm is true, and vLLM is not installed: pip install trl[vllm], or --use_vllm false")
    if training_args.use_liger_kernel and not is_liger_kernel_available():
        raise UsageError("use_liger_kernel is true, and liger-kernel is not installed: pip install liger-kernel")
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    if started and training_args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise UsageError(
            f"{torch.distributed.get_world_size()} processes were started for GPUs that are not there or not used, and "
            "each would train for itself. Give `accelerate launch` a configuration for this machine, such as "
            "accelerate_configs/cpu.yaml"
        )
    try:
        with usage_errors(ValueError):  # no such place to report to
            reporters = get_reporting_integration_callbacks(training_args.report_to)
        for reporter in reporters:
            reporter()
    except RuntimeError as error:
        raise UsageError(f"report_to: {error}") from error


def check_output(option: str, folder: str) -> None:
    """Raise `UsageError`, which names `option`, where `folder` cannot be made or written. Makes nothing."""
    path = Path(folder).absolute()
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    if not place.is_dir():
        raise UsageError(f"{option}: cannot write to {folder}, since {place} is a file: choose another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: cannot write to {folder}, since {place} may not be written: choose another folder")


def _check_checkpoint(training_args: GRPOConfig) -> None:
    checkpoint, output = training_args.resume_from_checkpoint, str(training_args.output_dir)
    if not checkpoint:
        return
    if str(checkpoint).lower() == "true":
        training_args.resume_from_checkpoint = True  # type: ignore[assignment]  # as `Trainer.train` takes it
        if not os.path.isdir(output) or get_last_checkpoint(output) is None:
            raise UsageError(f"there is no checkpoint in {output}: leave resume_from_checkpoint out to begin a run")
        return
    last = get_last_checkpoint(checkpoint) if os.path.isdir(checkpoint) else None
    if last is not None:
        raise UsageError(f"{checkpoint} is the folder of a run and no checkpoint; its last one is {last}")
    if not os.path.isfile(os.path.join(checkpoint, "trainer_state.json")):
        raise UsageError(
            f"there is no checkpoint {checkpoint}: give the folder of one, such as {output}/checkpoint-100, which has "
            "a trainer_state.json. To begin a run with the weights of a model, use --model_name_or_path"
        )
