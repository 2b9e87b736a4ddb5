"""The memory of one training process, phase by phase, and what could be changed where it is too much."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from transformers import PretrainedConfig
from trl import ModelConfig, get_peft_config

from scripts.memory_plan.fake_model import Activations, build_model, checkpoint_layers, model_sizes, trace
from scripts.memory_plan.inputs import Launch
from scripts.memory_plan.memory import (
    GIB,
    Engine,
    ModelSizes,
    Sharding,
    States,
    buffers,
    kv_cache,
    lm_head,
    model_states,
    reference_model,
    sampling,
    vllm_engine,
    whole_model,
)

ENGINE_OVERHEAD = 2 * GIB  # assumed: vLLM's own passes and CUDA graphs, within its share


@dataclass(frozen=True)
class Limits:
    """What the configurations leave open. Bytes, and tokens of a prompt."""

    memory: float
    reserve: float
    prompt: int


@dataclass(frozen=True)
class Plan:
    """`phases` holds the bytes of every part in every phase of a step; `problems` is empty where the run fits."""

    model: ModelSizes
    phases: dict[str, dict[str, float]]
    engine: Engine | None
    host: float
    problems: list[str]
    rounds_updates_away: bool

    @property
    def peak(self) -> float:
        return max(sum(parts.values()) for parts in self.phases.values())


def measure_model(
    config: PretrainedConfig, settings: dict[str, Any], launch: Launch, sequence: int
) -> tuple[ModelSizes, Sharding, Activations]:
    """Sizes and activations of the model, built and run on fake tensors: shapes and types without memory."""
    name = settings["dtype"] or "float32"
    if name == "auto":
        name = str(config.dtype or torch.float32).removeprefix("torch.")
    loaded = getattr(torch, name)
    mixed = "bf16" if settings["bf16"] else "fp16" if settings["fp16"] else launch.mixed_precision
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}[mixed]
    compute = loaded if autocast is None else autocast
    zero = launch.strategy in ("zero2", "zero3")
    attention = settings["attn_implementation"] or "sdpa"
    lora = None
    if settings["use_peft"]:
        lora = get_peft_config(ModelConfig(**{field.name: settings[field.name] for field in fields(ModelConfig)}))
    # Under ZeRO and FSDP2 the weights of a pass are in the type it computes in, and the master weights are not.
    sharded = zero or launch.strategy == "fsdp2"
    model = build_model(
        config,
        dtype=compute if sharded else loaded,
        attention="eager" if attention == "eager" else "sdpa",
        lora=lora,
        float32_adapters=not sharded,
    )
    if settings["gradient_checkpointing"]:
        checkpoint_layers(model, settings["gradient_checkpointing_kwargs"])
    # TRL keeps adapters in the model's type under ZeRO-3, and PEFT makes them float32 elsewhere.
    trainable_bytes = 4 if lora is not None and launch.strategy != "zero3" else loaded.itemsize
    sizes = model_sizes(model, frozen_bytes=loaded.itemsize, trainable_bytes=trainable_bytes)
    activations = trace(
        model,
        rows=settings["per_device_train_batch_size"],
        sequence=sequence,
        autocast=None if zero else autocast,
        padded="flash" not in attention,
    )
    sharding = Sharding(
        launch.strategy,
        launch.processes,
        compute_bytes=compute.itemsize,
        offload_optimizer=launch.offload_optimizer,
        offload_weights=launch.offload_weights,
        triton=not launch.cpu,
    )
    return sizes, sharding, activations


def make_plan(config: PretrainedConfig, settings: dict[str, Any], launch: Launch, limits: Limits) -> Plan:
    """Memory of one process in the three phases of a training step, and what does not fit."""
    rows, completion = settings["per_device_train_batch_size"], settings["max_completion_length"]
    sequence = limits.prompt + completion
    model, sharding, activations = measure_model(config, settings, launch, sequence)
    states: States = model_states(model, sharding)
    head = lm_head(model, sharding, rows, sequence, completion)
    sampled = rows * settings["steps_per_generation"]
    colocated = settings["use_vllm"] and settings["vllm_mode"] == "colocate"
    needs_reference = settings["beta"] != 0 and not settings["use_peft"]

    always = {
        "weights": states.weights,
        "reference model": reference_model(model, sharding) if needs_reference else 0.0,
        "optimizer states": states.optimizer,
    }
    backward = always | {
        "gradients": states.gradients,
        "gathered weights and buckets": buffers(model, sharding),
        # The LM head comes when all activations are there; the peak of the layers when the head is done.
        "activations": activations.saved,
        "LM head or a layer's backward": max(head, activations.peak - activations.saved),
    }
    step = always | {"gradients": states.gradients + states.step}
    # ZeRO-3 keeps its buffer of gradients; the others have dropped theirs when a batch is generated.
    generation = always | {"gradients": states.gradients if sharding.strategy == "zero3" else 0.0}
    merged = settings["use_peft"] and settings["use_vllm"]
    if merged or not settings["use_vllm"]:
        generation["gathered weights and buckets"] = whole_model(model, sharding)
    if not settings["use_vllm"]:
        generation["KV cache"] = kv_cache(model, sampled, sequence, generating_bytes(model, sharding))
        generation["sampling"] = sampling(sampled, model.vocabulary)

    problems: list[str] = []
    engine = None
    if colocated:
        parallel = settings["vllm_tensor_parallel_size"]
        engine = vllm_engine(model, limits.memory, settings["vllm_gpu_memory_utilization"], parallel, ENGINE_OVERHEAD)
        longest = settings["vllm_max_model_length"] or config.get_text_config().max_position_embeddings
        if longest < sequence:
            problems.append(f"vllm_max_model_length {longest} is shorter than prompt and completion, {sequence}")
        if engine.cache_tokens < longest:
            problems.append(
                f"vLLM's share of {gib(engine.share)} GiB holds weights of {gib(engine.weights)} GiB and "
                f"{engine.cache_tokens} cached tokens, and vLLM starts only with vllm_max_model_length, {longest}"
            )
        generation["vLLM"] = engine.share
        if not settings["vllm_enable_sleep_mode"]:
            backward["vLLM"] = step["vLLM"] = engine.share
    phases = {"generation": generation, "backward": backward, "optimizer step": step}
    for name, parts in phases.items():
        parts["reserve"] = limits.reserve
        total = sum(parts.values())
        if total > limits.memory:
            largest = max(parts, key=lambda part: parts[part])
            problems.append(
                f"{name} needs {gib(total)} of {gib(limits.memory)} GiB, most of it for {largest} "
                f"({gib(parts[largest])})"
            )
    host = states.host * launch.processes / launch.machines
    alone = sharding.strategy in ("one", "ddp")
    return Plan(model, phases, engine, host, problems, rounds_updates_away=alone and model.trainable_bytes < 4)


def generating_bytes(model: ModelSizes, sharding: Sharding) -> int:
    """Bytes of a key's or value's element in transformers' cache, which has the type of the weights that are there."""
    if sharding.strategy in ("zero2", "zero3", "fsdp2"):
        return sharding.compute_bytes
    return model.frozen_bytes if model.frozen else model.trainable_bytes


Change = tuple[str, dict[str, Any], Launch]


def remedies(settings: dict[str, Any], launch: Launch, limits: Limits) -> list[list[Change]]:
    """Changes to try, the least intrusive first: what to say, the settings and the launch with it.

    Each list holds changes of one kind, from mild to strong.
    """

    def option(**changes: Any) -> Change:
        words = " ".join(f"--{name} {str(value).lower()}" for name, value in changes.items())
        return words, settings | changes, launch

    found: list[list[Change]] = []
    if not settings["gradient_checkpointing"]:
        found.append([option(gradient_checkpointing=True)])
    rows = settings["per_device_train_batch_size"]
    divisors = [smaller for smaller in range(rows // 2, 0, -1) if rows % smaller == 0]
    found.append(
        [
            option(
                per_device_train_batch_size=smaller,
                gradient_accumulation_steps=rows // smaller * settings["gradient_accumulation_steps"],
                steps_per_generation=rows // smaller * settings["steps_per_generation"],
            )
            for smaller in divisors
        ]
    )
    if settings["use_vllm"] and settings["vllm_mode"] == "colocate":
        sequence = limits.prompt + settings["max_completion_length"]
        # SRPO also asks the model about a whole completion: its prompt and answer are longer than that.
        asks = settings.get("localizer", "self" if settings.get("method") == "srpo" else "random") == "self"
        if settings["vllm_max_model_length"] != sequence and not asks:
            found.append([option(vllm_max_model_length=sequence)])
        shares = [share for share in (0.3, 0.4, 0.5, 0.6) if share > settings["vllm_gpu_memory_utilization"]]
        found.append([option(vllm_gpu_memory_utilization=share) for share in shares])
        if not settings["vllm_enable_sleep_mode"]:
            found.append([option(vllm_enable_sleep_mode=True)])
        found.append([option(vllm_mode="server")])
    if launch.processes > 1 and not launch.cpu:
        for strategy, offload in (("zero2", False), ("zero3", False), ("zero3", True)):
            changed = replace(launch, strategy=strategy, offload_optimizer=offload, offload_weights=offload)
            if changed != launch:
                name = f"accelerate_configs/{strategy}{'_offload' if offload else ''}.yaml"
                found.append([(f"--config_file {name}", settings, changed)])
        if launch.strategy in ("zero2", "zero3", "fsdp2"):
            more = [replace(launch, processes=n * launch.processes, machines=n * launch.machines) for n in (2, 4)]
            found.append([(f"--num_processes {m.processes} --num_machines {m.machines}", settings, m) for m in more])
    if not settings["use_peft"]:
        found.append([option(use_peft=True, lora_target_modules="all-linear")])
    return found


def gib(size: float) -> str:
    return f"{size / GIB:.1f}"
