"""The reward `countdown`: whether an expression uses given numbers once each and makes a target of them."""

import ast
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from ..data.latex import plain_signs
from .answers import Completion, completion_text, extract_answer, stated_answer

_LONGEST = 300  # characters of an expression
_SIGNS = {
    "\\(": "", "\\)": "", "\\[": "", "\\]": "",
    "×": "*", "·": "*", "÷": "/", "\\times": "*", "\\cdot": "*", "\\div": "/", "\\left": "", "\\right": "", "$": "",
    "[": "(", "]": ")",
}  # fmt: skip
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")


def countdown_reward(
    completions: Sequence[Completion], nums: Sequence[Sequence[int]], target: Sequence[int], **kwargs: Any
) -> list[float]:
    """Return 1.0 where the stated expression uses each of `nums` exactly once and equals `target`, else 0.0.

    The rule is that of github.com/Jiayi-Pan/TinyZero (verl/utils/reward_score/countdown.py), computed exactly. An
    expression has whole numbers, +, -, *, / and parentheses, also as LaTeX; "= 24" may follow it.
    """
    return [
        float(_solves(completion_text(completion), [Fraction(number) for number in numbers], Fraction(goal)))
        for completion, numbers, goal in zip(completions, nums, target, strict=True)
    ]


def _solves(text: str, numbers: list[Fraction], goal: Fraction) -> bool:
    stated = stated_answer(text)
    expression = plain_signs(extract_answer(text) if stated is None else stated).partition("=")[0]
    for sign, plain in _SIGNS.items():
        expression = expression.replace(sign, plain)
    expression = _FRACTION.sub(r"((\1)/(\2))", expression).strip().rstrip(".")
    if len(expression) > _LONGEST or not re.fullmatch(r"[\d\s+\-*/()]*", expression, re.ASCII) or "**" in expression:
        return False
    used: list[int] = []
    try:
        value = _value(ast.parse(expression, mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):  # the last two: brackets too deep
        return False
    return value == goal and sorted(used) == sorted(numbers)


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """Return the value of an expression and add its numbers to `used`. Raises `ValueError` for other nodes."""
    match node:
        case ast.Constant(value=int() as number):
            used.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, used)
        case ast.BinOp(left=left, op=operator, right=right):
            a, b = _value(left, used), _value(right, used)
            match operator:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
    raise ValueError(f"no arithmetic: {ast.dump(node)}")
