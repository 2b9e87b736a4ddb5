"""A look at the rewards before the hours of training: does each problem's own gold earn the full reward, and no other?

`check_rewards` writes the gold of each row as a model would write it, scores that, an empty answer and the gold of
another row, and says in plain language what is wrong. `check_report` prints it.
"""

import functools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice, product
from typing import Any

import torch
from datasets import Dataset
from trl import rewards as trl_rewards

from ..data.golds import choice_gold, math_gold, yes_no_gold
from ..data.latex import number_value
from ..testbed.arithmetic import ANSWER_MARK, answer_reward
from .answers import RewardFunction, choice_reward, yes_no_reward
from .calls import call_reward
from .check_report import RewardReport, RewardTable, judge
from .mathematics import accuracy_reward
from .registry import check_columns, load_reward

# How an answer may be asked for. A model's own words around it are left out.
STYLES: dict[str, str] = {
    "boxed": "\\boxed{{{}}}",
    "tags": "<answer>{}</answer>",
    "plain": "The answer is {}.",
    "code": "```python\n{}\n```",
    "bare": "{}",
}
GOLD_COLUMNS = ("solution", "answer")

# How a reward reads its gold. Of other rewards the gold is tried as it is, and as `math_gold` reads it.
_READERS: dict[Any, Callable[[Any], str | None]] = {
    accuracy_reward: math_gold,
    trl_rewards.accuracy_reward: math_gold,
    choice_reward: choice_gold,
    yes_no_reward: yes_no_gold,
    answer_reward: lambda value: None if value is None else f"{ANSWER_MARK}{value}",
}


def check_rewards(
    dataset: Iterable[Mapping[str, Any]],
    reward_funcs: RewardFunction | str | Sequence[RewardFunction | str],
    *,
    rows: int = 200,
    style: str | None = None,
    gold_column: str | None = None,
    seed: int = 0,
) -> RewardReport:
    """Score the golds of a data set by its rewards, and say what to change where they do not earn what they should.

    Args:
        dataset: the data set that the trainer gets, with a column `prompt` and those that the rewards read.
        reward_funcs: reward functions in TRL's signature, also asynchronous ones, or names of
            `credit_trl.rewards.REWARDS`. Reward models are left out.
        rows: how many rows to read, drawn by `seed`; the first ones of an iterable data set.
        style: how the prompts ask for the answer, a key of `STYLES`. `None` reads it from the prompts, and tries all
            where they say nothing.
        gold_column: the column that holds the gold. `None` takes `solution`, or else `answer`.
        seed: which rows are drawn.

    Returns:
        A report: `print` shows it as a table with a verdict, and `report.ok` says whether all is well.

    Raises:
        ValueError: for a data set without rows or without a column that is needed, and for a reward that returns
            something else than one number or `None` for each completion. It names the reward, the column and the row.
    """
    if style is not None and style not in STYLES:
        raise ValueError(f"unknown style {style!r}: use one of {', '.join(STYLES)}")
    functions = [reward_funcs] if isinstance(reward_funcs, str) or callable(reward_funcs) else list(reward_funcs)
    loaded = [load_reward(function) if isinstance(function, str) else function for function in functions]
    loaded = [function for function in loaded if not isinstance(function, torch.nn.Module)]
    places, sample = _draw(dataset, rows, seed)
    columns = list(sample[0])
    if "prompt" not in columns:
        raise ValueError(f"the data set has no column `prompt`: it has {', '.join(columns)}")
    check_columns([function for function in loaded if not isinstance(function, functools.partial)], columns)
    if gold_column is not None and gold_column not in columns:
        raise ValueError(f"the data set has no column `{gold_column}`: it has {', '.join(columns)}")
    gold_column = gold_column or next((name for name in GOLD_COLUMNS if name in columns), None)
    asked = style or _asked_style(sample)
    tables = [_table(function, sample, gold_column, asked) for function in loaded]
    return judge(places, [_prompt_text(row["prompt"]) for row in sample], gold_column, asked, tables)


def _draw(dataset: Iterable[Mapping[str, Any]], rows: int, seed: int) -> tuple[list[int], list[dict[str, Any]]]:
    if isinstance(dataset, Mapping):
        raise ValueError(f"check_rewards needs one split of the data set: choose from {', '.join(dataset)}")
    if isinstance(dataset, Dataset | Sequence):
        places = sorted(random.Random(seed).sample(range(len(dataset)), min(rows, len(dataset))))
        sample = [dict(dataset[place]) for place in places]
    else:
        sample = [dict(row) for row in islice(dataset, rows)]
        places = list(range(len(sample)))
    if not sample:
        raise ValueError("the data set has no rows")
    return places, sample


def _prompt_text(prompt: Any) -> str:
    """Return the text of a prompt, of messages that of all of them, as a system prompt may say how to answer."""
    if isinstance(prompt, str):
        return prompt
    contents = [message.get("content") or "" for message in prompt]
    return "\n".join(
        content if isinstance(content, str) else " ".join(part.get("text") or "" for part in content)
        for content in contents
    )


def _asked_style(sample: Sequence[Mapping[str, Any]]) -> str | None:
    texts = [_prompt_text(row["prompt"]) for row in sample]
    for name, sign in (("boxed", "\\boxed"), ("tags", "<answer>"), ("code", "```python")):
        if sum(sign in text for text in texts) > len(texts) / 2:
            return name
    return None


def _table(
    function: RewardFunction, sample: list[dict[str, Any]], gold_column: str | None, asked: str | None
) -> RewardTable:
    """Score the own gold of every row, an empty answer, and two golds of other rows, in the style that earns most."""
    name = getattr(function, "__name__", type(function).__name__)
    reader = _READERS.get(function)
    values = [row[gold_column] for row in sample] if gold_column else [None] * len(sample)
    # Of golds that a reward is known to refuse, the report says so; it is not called with them.
    left_out = {row for row, value in enumerate(values) if gold_column and reader and reader(value) is None}
    rows = [row for row in range(len(sample)) if row not in left_out]

    def score(texts: Sequence[str | None]) -> list[float | None]:
        """Return the rewards of `texts`, one for each row; `None` where a text is `None` or its row is left out."""
        rewards: list[float | None] = [None] * len(texts)
        written = [row for row in rows if texts[row] is not None]
        if written:
            told = call_reward(function, name, [sample[row] for row in written], [texts[row] or "" for row in written])
            for row, reward in zip(written, told, strict=True):
                rewards[row] = reward
        return rewards

    def written(golds: Sequence[str | None], style: str) -> list[str | None]:
        return [gold and STYLES[style].format(gold) for gold in golds]

    empty = score([""] * len(sample))
    styles = [asked, *(style for style in STYLES if style != asked)] if asked else list(STYLES)
    tables = []
    for style, read in product(styles, [reader] if reader else [_as_text, math_gold]):
        golds = [read(value) for value in values]
        table = RewardTable(name, golds, style, own=score(written(golds, style)), empty=empty)
        tables.append(table)
        if all(reward == table.full > 0 for row, reward in enumerate(table.own) if row in rows):
            break  # no other style can do better
    # The style that the prompts ask for, or else the one that earns most.
    best = max(tables, key=lambda table: (table.style == asked, table.earned))
    best.others = [score(written(golds, best.style)) for golds in _others(best.golds)]
    best.look_alikes = score(written(_look_alikes(best.golds), best.style))
    for table in tables:
        best.earned_in[table.style] = max(table.earned, best.earned_in.get(table.style, table.earned))
    return best


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None if value is None else str(value)


def _others(golds: Sequence[str | None]) -> list[list[str | None]]:
    """Return for each gold the next different one, and the one after that; `None` where there is none."""
    pairs = []
    for place, gold in enumerate(golds):
        different = (other for other in chain(golds[place:], golds[:place]) if other and other != gold)
        first = next(different, None)
        pairs.append((first, next((other for other in different if other != first), None)))
    return [list(column) for column in zip(*pairs, strict=True)]


def _look_alikes(golds: Sequence[str | None]) -> list[str | None]:
    """Return for each gold that is a number another number that its digits are part of, as 5 is of 15, or `None`."""
    numbers = [gold for gold in dict.fromkeys(golds) if gold and number_value(gold) is not None]
    return [
        next((other for other in numbers if gold in other and number_value(other) != number_value(gold)), None)
        if gold in numbers
        else None
        for gold in golds
    ]
