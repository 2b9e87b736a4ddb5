"""What all configurations share: made from a plain `GRPOConfig`, and checked as a whole."""

import math
from dataclasses import dataclass, fields
from typing import Self

from trl import GRPOConfig


@dataclass
class CreditConfig(GRPOConfig):
    """What the configurations share: made from a plain `GRPOConfig`, and checked as a whole.

    A class that inherits from two of them has the fields and the refusals of both.
    """

    @classmethod
    def from_grpo_config(cls, args: GRPOConfig) -> Self:
        """`args` with this class's defaults for the fields that it lacks.

        The finished state is copied: building anew would run TRL's `__post_init__` a second time on fields that it
        has derived already (it refuses `generation_batch_size` together with `steps_per_generation`).
        """
        if not isinstance(args, GRPOConfig):
            raise TypeError(f"args must be a GRPOConfig or a {cls.__name__}, got {type(args).__name__}")
        config = object.__new__(cls)
        # The defaults are written into the instance too, so that they are saved with the training arguments.
        vars(config).update({one.name: one.default for one in fields(cls) if one.name not in vars(args)} | vars(args))
        return config

    def __post_init__(self):
        super().__post_init__()
        self.check_options()

    def check_options(self) -> None:
        """Raise `ValueError` for a value out of range and for TRL options under which the method has no meaning."""


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_number(name: str, value: object) -> float:
    """`value` itself. NaN is no number: every comparison with it is false, so a limit would let it through."""
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return value


def check_integer(name: str, value: object, least: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        raise ValueError(f"{name} must be an integer{'' if least is None else f' of at least {least}'}, got {value!r}")
