"""Call a reward function as TRL's trainer does, and say plainly what is wrong with what it returns."""

import asyncio
import copy
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from typing import Any

import torch

from ..data.golds import shown
from .answers import RewardFunction


def call_reward(
    function: RewardFunction, name: str, sample: Sequence[Mapping[str, Any]], texts: Sequence[str]
) -> list[float | None]:
    """Return what the reward function `name` gives to `texts`, the completions of the rows `sample`.

    It gets what TRL's trainers hand to it, in copies; an asynchronous function is awaited. Raises `ValueError` that
    names the reward, and the row where there is one, for everything but a number or `None` for each completion.
    """
    # A reward may change what it is given.
    rows = copy.deepcopy(list(sample))
    prompts = [row["prompt"] for row in rows]
    completions: list[Any] = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    skipped = ("prompt", "completion", "completion_ids")
    columns = {column: [row[column] for row in rows] for column in rows[0] if column not in skipped}
    arguments = columns | {
        "prompts": prompts,
        "completions": completions,
        "completion_ids": [list(range(1 + len(text) // 4)) for text in texts],  # about as many tokens
        "trainer_state": None,
        "log_extra": lambda column, values: None,
        "log_metric": lambda metric, value: None,
    }
    returned = function(**arguments)
    if inspect.isawaitable(returned):
        awaitable = returned
        with ThreadPoolExecutor(1) as thread:  # a notebook has a running loop of its own
            returned = thread.submit(asyncio.run, _wait_for(awaitable)).result()
    return checked_rewards(returned, name, len(texts))


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


def checked_rewards(returned: Any, name: str, expected: int) -> list[float | None]:
    """Return the rewards as numbers, `None` for one that is `None` or not a number; errors as in `call_reward`."""
    if isinstance(returned, torch.Tensor):
        if returned.device.type != "cpu":
            raise ValueError(f"the reward {name} returned a tensor on {returned.device}: return a list, by .tolist()")
        returned = returned.tolist()
    if isinstance(returned, str) or not isinstance(returned, Iterable):
        raise ValueError(
            f"the reward {name} returned {shown(returned)}, not a list with one reward for each completion"
        )
    rewards = list(returned)
    if len(rewards) != expected:
        raise ValueError(
            f"the reward {name} returned {len(rewards)} rewards for {expected} completions: return one for each, in "
            "their order, and None for a row that it cannot judge"
        )
    for row, reward in enumerate(rewards):
        if isinstance(reward, torch.Tensor) and reward.device.type != "cpu":
            raise ValueError(f"the reward {name} returned a tensor on {reward.device} in row {row}: return floats")
        value = reward.item() if isinstance(reward, torch.Tensor) and reward.numel() == 1 else reward
        if value is not None and not isinstance(value, Real):
            raise ValueError(f"the reward {name} returned {shown(reward)} in row {row}, where a number or None belongs")
        rewards[row] = None if value is None or math.isnan(value) else float(value)
    return rewards
