"""Make a method's configuration from TRL's `GRPOConfig` or a user's subclass of it, and check it as a whole."""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

from trl import GRPOConfig


@dataclass
class CreditConfig(GRPOConfig):
    """Hold TRL's `GRPOConfig` and what a method adds to it; the base class of every method's configuration.

    It declares no field of its own. A class that inherits from two methods has the fields and the refusals of both.
    Raises `ValueError` for a value out of range and for TRL options under which the method has no meaning.
    """

    @classmethod
    def from_grpo_config(cls, args: GRPOConfig) -> Self:
        """Return a copy of `args` with this method's defaults for the fields that it lacks.

        The copy is an instance of `args`'s own class too, with its fields, properties and methods. Values are taken as
        they are: TRL's `__post_init__` does not run a second time on what it has derived already (it would refuse
        `generation_batch_size` together with `steps_per_generation`).

        Raises `TypeError` where `args` is not a `GRPOConfig`.
        """
        return copy.copy(cls.sharing(args))

    @classmethod
    def sharing(cls, args: GRPOConfig) -> Self:
        """Return `args` as this method's configuration: another object with the same values, now and later.

        What is set on one of the two is set on the other, as TRL's trainers see what is set on `args` after they were
        built. `args` keeps its class and gains no field, so that another trainer can be built from it. The method's
        defaults are attributes of the class until they are set.

        Raises `TypeError` where `args` is not a `GRPOConfig`.
        """
        if not isinstance(args, GRPOConfig):
            raise TypeError(f"args must be a GRPOConfig or a {cls.__name__}, got {type(args).__name__}")
        config: Any = object.__new__(_joined(cls, type(args)))
        config.__dict__ = args.__dict__
        return config

    def __getstate__(self) -> dict[str, Any]:
        """Return every field, defaults included: saved training arguments do not depend on later defaults."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | vars(self)

    def __post_init__(self):
        super().__post_init__()
        self.check_options()

    def check_options(self) -> None:
        """Raise `ValueError` for a value out of range and for TRL options under which the method has no meaning."""


def _join(config_class: type, users_class: type) -> type:
    """Return a class that inherits from both. The user's class comes first, so that its overrides stay in force.

    It has the name of the method's class, since an error that advises to set a field must name a class that exists.
    """
    if issubclass(config_class, users_class):
        return config_class
    namespace = {
        "__qualname__": f"{config_class.__qualname__}+{users_class.__qualname__}",
        "__doc__": f"Hold the fields of {users_class.__name__} and of {config_class.__name__}.",
        "__module__": __name__,
        # A class that was made here cannot be found by its name when it is read back, but the two others can.
        "__reduce__": lambda self: (_blank, (config_class, users_class), self.__getstate__()),
    }
    return dataclass(repr=False, eq=False)(type(config_class.__name__, (users_class, config_class), namespace))


_joined: Callable[[type, type], type] = functools.cache(_join)  # one class, so that types compare equal


def _blank(config_class: type, users_class: type) -> CreditConfig:
    """Return an empty instance of the class that `_join` makes, for `pickle` and `copy` to fill."""
    return object.__new__(_joined(config_class, users_class))


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` where `value` is none of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_number(name: str, value: object) -> float:
    """Return `value`; raise `ValueError` where it is no number.

    NaN is none: every comparison with it is false, so a limit would let it through.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return value


def check_integer(name: str, value: object, least: int | None = None) -> None:
    """Raise `ValueError` where `value` is no integer, or is below `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        raise ValueError(f"{name} must be an integer{'' if least is None else f' of at least {least}'}, got {value!r}")
