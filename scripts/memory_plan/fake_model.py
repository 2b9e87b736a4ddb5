"""A model of shapes and types without memory: its sizes, and what its passes hold."""

import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from scripts.memory_plan.memory import ModelSizes, kv_elements


class LiveBytes(TorchDispatchMode):
    """While active, the bytes of all tensors that were made and are still alive, and their peak.

    Each storage counts once, whatever views it has. Memory that an operator uses inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def ignore(self, module: Module) -> None:
        """Leave out the parameters and buffers of `module`."""
        for tensor in [*module.parameters(), *module.buffers()]:
            self._remember(tensor.untyped_storage(), 0)

    def _remember(self, storage: torch.UntypedStorage, size: int) -> None:
        key = id(storage)
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._remember(storage, storage.nbytes())
        return result


@dataclass(frozen=True)
class Activations:
    """Bytes: what the forward pass leaves for the backward pass, and the peak of both. Neither has weights, their
    gradients or the LM head."""

    saved: int
    peak: int


def trace(model: PreTrainedModel, rows: int, sequence: int, autocast: torch.dtype | None, padded: bool) -> Activations:
    """Run a model of the meta device without its LM head, forward and backward, on fake tensors of the CPU.

    There, attention takes a kernel that holds no weights of T x T, as on a GPU, and the meta device has none. `padded`
    batches carry an attention mask, as TRL's do; flash attention takes none. Gradients of weights are dropped at once,
    as they are counted elsewhere. `model` cannot be used after it.
    """

    def drop(parameter: torch.Tensor) -> None:
        parameter.grad = None

    live = LiveBytes()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        model.tie_weights()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(drop)
        live.ignore(model)
        with live:
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                tokens = torch.zeros(rows, sequence, dtype=torch.long)
                mask = torch.ones(rows, 1, sequence, sequence, dtype=torch.bool) if padded else None
                hidden = model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
            saved = live.now
            hidden.backward(torch.zeros_like(hidden))
    return Activations(saved, live.peak)


def build_model(
    config: PretrainedConfig, dtype: torch.dtype, attention: str, lora: Any | None, float32_adapters: bool
) -> PreTrainedModel:
    """The model on the meta device, in training mode, with adapters where `lora` is a configuration of PEFT's."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        if lora is not None:
            from peft import get_peft_model  # an extra

            get_peft_model(model, lora, autocast_adapter_dtype=float32_adapters)  # puts them into `model` itself
    return model.train()


def checkpoint_layers(model: PreTrainedModel, options: dict[str, Any] | None) -> None:
    """Gradient checkpointing as TRL switches it on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that all supported versions of transformers have
        model.gradient_checkpointing_enable(options)
    if not all(p.requires_grad for p in model.parameters()):
        model.enable_input_require_grads()


def model_sizes(model: PreTrainedModel, frozen_bytes: int, trainable_bytes: int) -> ModelSizes:
    parameters = list(model.parameters())
    blocks = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    head = model.get_output_embeddings().weight
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    return ModelSizes(
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        frozen_bytes=frozen_bytes,
        trainable_bytes=trainable_bytes,
        block=max((sum(p.numel() for p in block.parameters()) for block in blocks), default=0),
        head=head.numel(),
        head_is_trained=head.requires_grad,
        vocabulary=head.shape[0],
        layers=text.num_hidden_layers,
        kv_elements=kv_elements(
            text.num_hidden_layers,
            getattr(text, "num_key_value_heads", None) or heads,
            getattr(text, "head_dim", None) or text.hidden_size // heads,
        ),
    )
