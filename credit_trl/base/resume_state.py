"""Keep what a run holds between two steps in two files of each process: tensors as safetensors, all else as JSON."""

import json
from collections import defaultdict, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL.Image import Image, frombytes
from safetensors.torch import load_file, save_file


def pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return `value` as JSON holds it; put tensors and the pixels of images into `tensors`, and name their keys there.

    Lists, tuples and deques become lists. What JSON does not know becomes its text, keys of dicts too: only what a
    reward function logs for the completions table can be of any type.
    """
    if isinstance(value, dict):
        return {str(key): pack(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        return [pack(item, tensors) for item in value]
    if isinstance(value, torch.Tensor | Image):
        key = str(len(tensors))
        if isinstance(value, Image):
            tensors[key] = torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8)
            return {"__image__": key, "mode": value.mode, "size": value.size}
        # The parts of a batch are views of one tensor, which safetensors refuses.
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"__tensor__": key}
    if isinstance(value, numpy.bool_ | numpy.integer | numpy.floating):
        value = value.item()
    return value if isinstance(value, str | int | float | None) else str(value)


def unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return what `pack` was given, with every sequence as a list."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__image__" in value:
        return frombytes(value["mode"], tuple(value["size"]), tensors[value["__image__"]].cpu().numpy().tobytes())
    return {key: unpack(item, tensors) for key, item in value.items()}


def write(folder: str, process: int, state: dict[str, Any]) -> None:
    """Write the state of the process with this index into `folder`."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(pack(state, tensors))
    Path(folder, f"in_flight_{process}.json").write_text(text)
    save_file(tensors, Path(folder, f"in_flight_{process}.safetensors"))


def read(folder: str, process: int, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Return what `write` wrote, with its tensors on `device`; None where it wrote nothing."""
    path = Path(folder, f"in_flight_{process}.json")
    if not path.is_file():
        return None
    # safetensors does not know "cpu:0", the device of a process among others.
    tensors = {key: tensor.to(device) for key, tensor in load_file(path.with_suffix(".safetensors")).items()}
    return unpack(json.loads(path.read_text()), tensors)


def check(written: dict[str, Any], folder: str, settings: dict[str, Any], names: Iterable[str]) -> None:
    """Raise `ValueError` where the state that was read from `folder` cannot be used on.

    `settings`: those of this run, which the run that wrote the state must have had. `names`: what will be put back.
    """
    remedy = f"or start a new run from its weights by passing {folder} as the model."
    lacking = [name for name in names if name not in written]
    if lacking:
        raise ValueError(
            f"{folder} was written by another version of credit_trl, which did not keep {', '.join(lacking)}: the run "
            f"could not go on as if it had not stopped. Resume with that version, {remedy}"
        )
    for name, value in written["settings"].items():
        now = settings.get(name)
        if value != now:
            raise ValueError(
                f"{name} was {value!r} in the run that wrote {folder} and is {now!r} here. Its buffered completions "
                f"cannot be used on. Resume with {value!r}, {remedy}"
            )


def refill(container: dict | list | deque, saved: Any) -> None:
    """Fill nested dicts of lists and deques with the items that were saved, and leave their types as they are."""
    if not isinstance(container, dict):
        container.clear()
        container.extend(saved)
        return
    if isinstance(container, defaultdict):
        container.clear()  # its keys are data, where those of a plain dict are there from the start
    for key, items in saved.items():
        refill(container[key], items)
