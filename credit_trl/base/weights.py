"""Load the weights of a checkpoint whole, or say which ones it lacks.

`save_pretrained` writes some models' weights under other names than their parameters have (Qwen2.5-VL, which keeps the
names of earlier versions) or in other pieces (experts). The Trainer reads a checkpoint by the parameters' names, and
only warns of those that it does not find: they stay what the model was made with.
"""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import nn
from transformers import PreTrainedModel

logger = get_logger(__name__)


def not_loaded(model: nn.Module, missing: Iterable[str]) -> list[str]:
    """Return those of the `missing` names whose tensor shares no memory with a tensor that was loaded.

    Tied weights are saved under one of their names.
    """
    missing = set(missing)
    tensors = model.state_dict()
    loaded = {tensor.data_ptr() for name, tensor in tensors.items() if name not in missing}
    return sorted(name for name in missing if name not in tensors or tensors[name].data_ptr() not in loaded)


def load_as_saved(model: nn.Module, folder: str, missing: list[str]) -> None:
    """Load `folder` into `model` by way of `from_pretrained`, which knows the names that `save_pretrained` writes.

    `missing`: what the Trainer did not find, which the error names where `from_pretrained` cannot help.

    Raises `ValueError` where weights are still missing.
    """
    if isinstance(model, PreTrainedModel):
        # In float32 no bit of a saved number is lost, and copying it back into the parameter rounds to what it was.
        loaded: Any = type(model).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        saved, report = loaded
        missing = not_loaded(saved, report["missing_keys"])
        missing += [str(key) for key in report["mismatched_keys"]]
        if not missing:
            model.load_state_dict(saved.state_dict())
            logger.info(f"{folder} has the names of an earlier version of the model; its weights were loaded by them.")
            return
    shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
    raise ValueError(
        f"{folder} lacks {len(missing)} of the {len(model.state_dict())} weights of {type(model).__name__}: {shown}. "
        "Training would go on with those that the model was made with. Make the trainer with the model, and with the "
        "peft_config, that wrote the checkpoint; or start a new run from its weights by passing it as the model."
    )
