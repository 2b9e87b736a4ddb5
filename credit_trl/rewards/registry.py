"""The reward functions by name, and what they need of a data set."""

import importlib
import inspect
from collections.abc import Collection, Sequence

from ..testbed.arithmetic import answer_reward
from .answers import RewardFunction, choice_reward, format_reward, task_reward, yes_no_reward
from .code import code_reward
from .countdown import countdown_reward
from .mathematics import accuracy_reward

# What TRL passes to every reward function beside the columns of the data set.
_FROM_TRAINER = {
    "prompts", "completions", "completion_ids", "environments", "trainer_state", "log_extra", "log_metric",
}  # fmt: skip

REWARDS: dict[str, RewardFunction] = {
    "accuracy": accuracy_reward,
    "choice": choice_reward,
    "code": code_reward,
    "countdown": countdown_reward,
    "format": format_reward,
    "task": task_reward,
    "testbed": answer_reward,
    "yes_no": yes_no_reward,
}


def load_reward(name: str) -> RewardFunction:
    """Return the reward function called `name`: a key of `REWARDS`, such as "accuracy", or a path `module.function`.

    The path imports its module and takes one public name from it. Raises `ValueError` when it is none of these, or when
    it leads to no function.
    """
    if name in REWARDS:
        return REWARDS[name]
    module_name, _, function_name = name.rpartition(".")
    if not module_name:
        raise ValueError(
            f"unknown reward function {name!r}: use one of {', '.join(REWARDS)}, or the dotted path of your own, "
            "such as my_package.my_module.my_reward"
        )
    if function_name == "py":
        raise ValueError(f"{name!r} is a file: name a function in it, such as {module_name}.my_reward")
    if function_name.startswith("_") or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(
            f"{name!r} is no dotted path of a public function: write it as you would import it, such as "
            "my_package.my_module.my_reward"
        )
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ModuleNotFoundError, AttributeError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and not f"{module_name}.".startswith(f"{missing}."):
            raise ValueError(
                f"cannot load the reward function {name!r}: {module_name} imports {missing!r}, which is not installed"
            ) from error
        raise ValueError(
            f"cannot load the reward function {name!r}: {error}. A dotted path must be importable from where you start "
            "Python"
        ) from error
    if not callable(function):
        raise ValueError(f"the reward function {name!r} is a {type(function).__name__}, which cannot be called")
    return function


def check_columns(reward_funcs: Sequence[RewardFunction], columns: Collection[str]) -> None:
    """Raise `ValueError` if a reward function needs a column that the data set does not have."""
    for function in reward_funcs:
        name, available = getattr(function, "__name__", str(function)), f"the data set has {', '.join(columns)}"
        if function is accuracy_reward:
            if not {"solution", "answer"} & set(columns):
                raise ValueError(
                    f"{name} needs a column `solution` or `answer`, and {available}. Say which column holds the "
                    "answer with answer_column"
                )
            continue
        for parameter in inspect.signature(function).parameters.values():
            variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            required = parameter.default is parameter.empty and not variadic
            if required and parameter.name not in {*_FROM_TRAINER, *columns}:
                raise ValueError(f"{name} needs a column `{parameter.name}`, and {available}")
