"""Rows of known data sets as problems: the prompt, and the column that the reward reads."""

import base64
import json
import pickletools
import random
import zlib
from collections.abc import Callable, Mapping
from string import ascii_uppercase
from typing import Any

from datasets import Dataset

from .golds import choice_gold, math_gold, shown, yes_no_gold
from .public_datasets import FUNCTION_INSTRUCTION, KnownDataset

STARTER_INSTRUCTION = "Complete this Python code, in one block ```python:"

# The rewards whose golds are read when a data set is loaded, and how.
GOLDS: dict[str, Callable[[Any], str | None]] = {
    "accuracy": math_gold,
    "choice": choice_gold,
    "yes_no": yes_no_gold,
}


def columns_of(known: KnownDataset) -> list[str]:
    """Return the columns that the rows of a known data set must have."""
    columns = [known.question, known.answer.partition(".")[0]]
    if known.choices is not None:
        columns += [known.choices] if isinstance(known.choices, str) else known.choices
    if known.starter is not None:
        columns.append(known.starter)
    return columns + (["private_test_cases", "metadata"] if known.answer == "public_test_cases" else [])


def as_problem(
    known: KnownDataset, row: Mapping[str, Any], index: int, instruction: str | None
) -> dict[str, Any] | None:
    """Return `prompt` and the columns that the reward reads, or `None` where the gold cannot be read.

    Args:
        known: what the columns mean.
        row: of the data set.
        index: the row's place in the data set, by which the choices of GPQA are shuffled.
        instruction: goes below a problem that is text, on a line of its own; `None` or "" adds nothing.
    """
    gold, question = gold_value(known, row), row[known.question]
    match known.reward:
        case "choice":
            read = _choice_problem(known, row, gold, index)
            if read is None:
                return None
            question, gold = read
            columns: dict[str, Any] = {"solution": gold}
        case "code":
            tests = _tests(known, row, gold)
            if tests is None:
                return None
            columns = {"tests": tests}
            starter = row[known.starter] if known.starter else ""
            if starter:
                instruction = f"{STARTER_INSTRUCTION}\n```python\n{starter}\n```" if instruction else instruction
            elif "fn_name" in tests or known.starter is None:
                instruction = FUNCTION_INSTRUCTION if instruction else instruction
        case "countdown":
            numbers = ", ".join(map(str, question))
            question = (
                f"Write an expression that equals {gold}. Use each of the numbers {numbers} exactly once, with +, -, "
                "*, / and parentheses."
            )
            columns = {"nums": row[known.question], "target": gold}
        case _:
            solution = yes_no_gold(gold) if known.reward == "yes_no" else math_gold(gold)
            if solution is None:
                return None
            columns = {"solution": solution}
    if isinstance(question, str) and instruction:
        question = f"{question.rstrip()}\n{instruction}"
    return {"prompt": question, **columns}


def gold_value(known: KnownDataset, row: Mapping[str, Any]) -> Any:
    """Return the gold of `row` as it stands in the data set."""
    value: Any = row
    for key in known.answer.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def report_unread(name: str, column: str, reward: str, rows: list[tuple[int, Any]], total: int) -> str:
    """Return the sentence that says how many golds cannot be read, and which are the first.

    `rows` are pairs of a row's place and the gold that it holds; `total` is the number of all rows.
    """
    first = "; ".join(f"row {index}: {shown(value)}" for index, value in rows[:3])
    return f"{name}: {len(rows)} of {total} golds in the column `{column}` cannot be read for {reward} ({first})"


def check_golds(dataset: Dataset, name: str, column: str, users_name: str, reward: str | None) -> None:
    """Raise `ValueError` if golds are missing, or of another kind than `reward` reads."""

    def missing(value: Any) -> str | None:
        return None if value is None or value == "" or value == [] else "something"

    read = GOLDS.get(reward or "", missing)
    unread = [(row, value) for row, value in enumerate(dataset[column]) if read(value) is None]
    if unread:
        wanted = f"the reward {reward}" if reward in GOLDS else "any reward"
        if isinstance(unread[0][1], dict):
            raise ValueError(
                f"{name}: the column `{users_name}` holds mappings. Name the field that has the answer: "
                f"{', '.join(f'{users_name}.{field}' for field in unread[0][1])}"
            )
        raise ValueError(
            f"{report_unread(name, users_name, wanted, unread, len(dataset))}. Drop these rows, or choose another "
            "answer_column or reward"
        )


def _choice_problem(known: KnownDataset, row: Mapping[str, Any], gold: Any, index: int) -> tuple[str, str] | None:
    """Return the question with its choices, and the letter of the right one."""
    if isinstance(known.choices, str):
        column = row[known.choices]
        letter = choice_gold(gold, column)
        choices = column["text"] if isinstance(column, Mapping) else column
    else:
        choices = [gold, *(row[name] for name in known.choices or ())]
        order = list(range(len(choices)))
        random.Random(index).shuffle(order)
        choices = [choices[place] for place in order]
        letter = ascii_uppercase[order.index(0)] if isinstance(gold, str) and gold.strip() else None
    if letter is None:
        return None
    lines = [f"({label}) {choice.strip()}" for label, choice in zip(ascii_uppercase, choices, strict=False)]
    return "\n".join([row[known.question].rstrip(), *lines]), letter


def _tests(known: KnownDataset, row: Mapping[str, Any], gold: Any) -> str | None:
    """Return the tests of a program as JSON, or `None` where there are none."""
    if not isinstance(gold, str) or not gold.strip():
        return None
    if known.answer == "public_test_cases":
        return _livecodebench_tests(row)
    if known.answer == "input_output":
        try:
            pairs = json.loads(gold)
        except ValueError:  # no JSON, or integers of more than 4,300 digits, which Python does not read
            return None
        return gold if pairs.get("inputs") and len(pairs["inputs"]) == len(pairs.get("outputs", ())) else None
    return json.dumps([gold])


def _livecodebench_tests(row: Mapping[str, Any]) -> str:
    """Return the tests of LiveCodeBench: private ones are JSON, or that pickled, compressed and in base 64."""
    tests = json.loads(row["public_test_cases"])
    try:
        private = json.loads(row["private_test_cases"])
    except json.JSONDecodeError:
        packed = zlib.decompress(base64.b64decode(row["private_test_cases"]))
        private = json.loads(_pickled_text(packed))
    function = json.loads(row["metadata"]).get("func_name")
    named = {"fn_name": function} if function else {}
    return json.dumps([test | named for test in [*tests, *private]])


def _pickled_text(packed: bytes) -> str:
    """Return the text of a pickle of nothing but a text. The pickle is read as data and never run."""
    texts = [value for _, value, _ in pickletools.genops(packed) if isinstance(value, str)]
    if len(texts) != 1:
        raise ValueError(f"private_test_cases hold {len(texts)} texts, where one was expected")
    return texts[0]
