"""Inputs of one loss that know what the loss has read of them: a loss that ignores the credit is noticed."""

from collections.abc import Mapping
from typing import Any, Self

import torch


class LossInputs(dict):
    """Hold the inputs of one loss, and write down whether the loss read what the credit is in.

    A loss that computes its own log-probabilities, that took its inputs before the credit was in them, or that knows
    nothing of a mask would train something else. Writing down costs a few dictionary accesses and waits for no device.
    """

    def __init__(self, inputs: Mapping[str, Any]):
        super().__init__(inputs)
        self.times_asked = 0  # how often the loss asked for the policy's log-probabilities
        self.unread: set[str] = set()  # keys that the loss has to read and has not read yet

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> Self:
        """Return `inputs` where they know already what is read, a copy that does otherwise.

        TRL buffers what it gives to a loss and uses it again, so that nothing may be written into it.
        """
        return inputs if isinstance(inputs, cls) else cls(inputs)

    def expect(self, *names: str) -> None:
        """Require that the loss reads the inputs of these names from now on."""
        self.unread |= set(names)

    def hand_out(self, **values: torch.Tensor) -> None:
        """Replace the inputs of these names, which the loss has to read from now on."""
        self.update(values)
        self.expect(*values)

    def peek(self, key: str) -> Any:
        """Return an input without taking it for read: the trainer looks, not the loss."""
        return super().__getitem__(key)

    def __getitem__(self, key):
        self.unread.discard(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.unread.discard(key)
        return super().get(key, default)
