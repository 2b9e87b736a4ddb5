"""What a plan is made from: the accelerate configuration, the recipe with the options, the model's configuration."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from transformers import AutoConfig, PretrainedConfig
from trl import GRPOConfig, ModelConfig

DTYPES = ("float32", "bfloat16", "float16")
ADAM = ("adamw_torch", "adamw_torch_fused")
REFUSED = ("load_in_4bit", "load_in_8bit", "use_liger_kernel")


@dataclass(frozen=True)
class Launch:
    """What an accelerate configuration says, as far as memory goes."""

    strategy: str
    processes: int
    machines: int
    mixed_precision: str
    cpu: bool
    offload_optimizer: bool = False
    offload_weights: bool = False


def read_launch(path: str, processes: int | None, machines: int | None) -> Launch:
    """The launch that an accelerate configuration describes. Raises `ValueError` for what has no arithmetic here."""
    try:
        config = load_config_from_file(path)
    except (yaml.YAMLError, AttributeError) as error:
        raise ValueError(f"{path} is no accelerate configuration: {error}") from error
    deepspeed, fsdp = config.deepspeed_config, config.fsdp_config
    kind = config.distributed_type
    offload_optimizer = offload_weights = False
    if kind == DistributedType.DEEPSPEED:
        stage = deepspeed.get("zero_stage")
        devices = [deepspeed.get(f"offload_{what}_device", "none") for what in ("optimizer", "param")]
        if "deepspeed_config_file" in deepspeed or stage not in (2, 3) or not set(devices) <= {"none", "cpu"}:
            raise ValueError(f"{path}: of DeepSpeed, zero_stage 2 and 3 with offload to none or cpu are planned for")
        strategy = f"zero{stage}"
        offload_optimizer, offload_weights = (device == "cpu" for device in devices)
    elif kind == DistributedType.FSDP:
        resharded = fsdp.get("fsdp_reshard_after_forward", True)
        if fsdp.get("fsdp_version") != 2 or fsdp.get("fsdp_offload_params") or not resharded:
            raise ValueError(
                f"{path}: of FSDP, fsdp_version 2 with fsdp_reshard_after_forward and without "
                "fsdp_offload_params is planned for"
            )
        strategy = "fsdp2"
    elif kind in (DistributedType.NO, DistributedType.MULTI_GPU):
        strategy = "one" if kind == DistributedType.NO else "ddp"
    else:
        raise ValueError(f"{path}: distributed_type {kind.value} is not planned for")
    return Launch(
        strategy=strategy,
        processes=processes or config.num_processes,
        machines=machines or config.num_machines,
        mixed_precision=config.mixed_precision or "no",
        cpu=config.use_cpu,
        offload_optimizer=offload_optimizer,
        offload_weights=offload_weights,
    )


def read_settings(path: str | None, words: list[str]) -> dict[str, Any]:
    """TRL's defaults, then the recipe at `path`, then `words` of the command line (`--option value`)."""
    settings = {field.name: field.default for cls in (GRPOConfig, ModelConfig) for field in fields(cls)}
    known = set(settings)
    if path is not None:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(recipe, dict):
            raise ValueError(f"{path} must hold a mapping of option: value, and holds a {type(recipe).__name__}")
        settings |= recipe  # what is not TRL's is train.py's business
    given: dict[str, list[Any]] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            if name not in known:
                raise ValueError(f"there is no option {name!r}; see python -m scripts.memory_plan --help")
            values = given.setdefault(name, [])
            if equals:
                values.append(yaml.safe_load(value))
        elif not given:
            raise ValueError(f"{word!r} belongs to no option")
        else:
            values.append(yaml.safe_load(word))
    for name, values in given.items():
        settings[name] = True if not values else values[0] if len(values) == 1 else values
    if settings["bf16"] is None:
        settings["bf16"] = not settings["fp16"]  # TRL's default
    if settings["steps_per_generation"] is None:
        settings["steps_per_generation"] = settings["gradient_accumulation_steps"]
    check_settings(settings)
    return settings


def check_settings(settings: dict[str, Any]) -> None:
    for name in ("per_device_train_batch_size", "max_completion_length", "steps_per_generation"):
        value = settings[name]
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number above 0, got {value!r}")
    if settings["generation_batch_size"] is not None:
        raise ValueError("generation_batch_size is not planned for: give steps_per_generation")
    for name in REFUSED:
        if settings[name]:
            raise ValueError(f"{name} is not planned for")
    if settings["optim"] not in ADAM:
        raise ValueError(f"optim must be one of {', '.join(ADAM)} to be planned for, got {settings['optim']!r}")
    if settings["dtype"] not in (*DTYPES, "auto", None):
        raise ValueError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {settings['dtype']!r}")


def load_config(name: str | None) -> PretrainedConfig:
    """The model's configuration by hub name, folder or config.json."""
    if name is None:
        raise ValueError("model_name_or_path is missing: a model of the hub, a folder or a config.json")
    try:
        return AutoConfig.from_pretrained(name)  # sizes, from JSON  # nosec B615
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model_name_or_path: found no configuration of {name!r}; give a hub name that can be reached, a folder "
            "or a config.json"
        ) from error
