"""The tasks of reasoning-gym, and which answers of a model may reach their scorers, some of which evaluate Python."""

import ast
import dataclasses
import difflib
import json
import re
from functools import lru_cache
from typing import Any

from datasets import Dataset

REASONING_GYM = "reasoning-gym/"


def score_task(spec: str, answer: str) -> float:
    """The score that the reasoning-gym task gives `answer`. `spec` is the content of a row's column `task`.

    Some tasks evaluate the answer as Python: they get it only if it is plain (`scorable`).
    """
    fields = json.loads(spec)
    index = fields.pop("index")
    task = _make_task(json.dumps(fields))
    entry = _entry(task, index)
    scorer = entry["metadata"].get("source_dataset", fields["name"])  # "composite" hands answers on to it
    return float(task.score_answer(scorable(scorer, answer), entry))


def _make_tasks(task_name: str, size: int, seed: int, options: dict[str, Any]) -> Dataset:
    # A row carries the seed and not the problem's metadata: those hold objects that JSON does not bring back.
    spec = {"name": task_name, "size": size, "seed": seed, "options": options}
    task = _make_task(json.dumps(spec))
    rows = [
        {"prompt": entry["question"], "solution": entry["answer"], "task": json.dumps({**spec, "index": index})}
        for index, entry in enumerate(_entry(task, index) for index in range(size))
    ]
    return Dataset.from_list(rows)


@lru_cache(maxsize=64)
def _make_task(spec: str):
    """The reasoning-gym data set of a row's column `task` without its index."""
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise ValueError(f"{REASONING_GYM}<task> needs a package: pip install credit_trl[reasoning]") from error

    fields = json.loads(spec)
    name, options = fields["name"], fields["options"]
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=5, cutoff=0.3)
        raise ValueError(
            f"reasoning-gym has no task {name!r}. Closest of its {len(DATASETS)}: {', '.join(sorted(close)) or 'none'}"
        )
    known = [field.name for field in dataclasses.fields(DATASETS[name][1]) if field.name not in ("seed", "size")]
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ValueError(f"{REASONING_GYM}{name} has no option {', '.join(unknown)}. It has {', '.join(known)}")
    return _call(REASONING_GYM + name, create_dataset, name, size=fields["size"], seed=fields["seed"], **options)


@lru_cache(maxsize=4096)  # some tasks search for seconds to make a problem, and a group scores the same one many times
def _entry(task, index: int) -> dict[str, Any]:
    return task[index]


def _call(what: str, function, *positional, **options):
    """Call `function` and turn the ways in which it rejects its options into a `ValueError`."""
    try:
        return function(*positional, **options)
    except (AssertionError, TypeError) as error:
        raise ValueError(f"{what} rejects its options {options}: {error or type(error).__name__}") from error


# Scorers that call `eval` on the answer: they look for a list of rows or characters.
LISTS = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})

# Scorers that call SymPy's `parse_expr` on the answer, which evaluates it too.
EXPRESSIONS = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
NO_ANSWER = "?"  # no Python and no expression: scores as any text of the wrong kind

# Nothing here can call, look up an attribute, repeat or loop.
_LIST = re.compile(r"(?!.*\bfor\b)[\w\s,'\"\[\]-]*", re.DOTALL)
_CHARACTERS = re.compile(r"[\w\s.+\-*/()]*", re.ASCII)
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant, ast.Name, ast.Call, ast.Load)
_FUNCTIONS = frozenset(
    ["exp", "log", "ln", "sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "Abs"]
)
_LARGEST_NUMBER, _LARGEST_EXPONENT, _LONGEST = 10**15, 99, 1000


def scorable(task: str, answer: str) -> str:
    """`answer`, or `NO_ANSWER` where the scorer of the reasoning-gym task would evaluate it and it is not plain.

    Plain is, for `LISTS`, text without calls, attributes and loops; for `EXPRESSIONS`, arithmetic over numbers,
    one-letter variables and elementary functions, with constant exponents up to 99 and no power of a power. Other
    tasks compare text and get every answer.
    """
    if task in LISTS:
        return answer if _LIST.fullmatch(answer) else NO_ANSWER
    if task in EXPRESSIONS:
        return answer if _is_arithmetic(answer.strip()) else NO_ANSWER
    return answer


def _is_arithmetic(text: str) -> bool:
    if len(text) > _LONGEST or not _CHARACTERS.fullmatch(text):
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: brackets too deep
        return False
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return all(_is_plain(node, id(node) in functions) for node in ast.walk(tree))


def _is_plain(node: ast.AST, is_called: bool) -> bool:
    match node:
        case ast.Name(id=name):
            return name in _FUNCTIONS if is_called else len(name) == 1
        case ast.Constant(value=value):
            return isinstance(value, int | float) and value < _LARGEST_NUMBER
        case ast.Call(func=function, args=arguments, keywords=keywords):
            return isinstance(function, ast.Name) and len(arguments) == 1 and not keywords
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            powers = (one for one in ast.walk(base) if isinstance(one, ast.Pow))
            return next(powers, None) is None and _is_small(exponent)
        case _:
            return isinstance(node, _NODES)


def _is_small(exponent: ast.AST) -> bool:
    """A number, its negative, or a fraction of such."""
    match exponent:
        case ast.Constant(value=int() | float() as value):
            return value <= _LARGEST_EXPONENT
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_small(operand)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _is_small(left) and _is_small(right)
    return False
