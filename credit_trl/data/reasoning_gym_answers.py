"""Which answers of a model may reach the scorers of reasoning-gym.

Some scorers evaluate the answer as Python, some would compute for minutes on a short text, and three give full marks to
nonsense. `scorable` holds back what is not plain, so that no answer runs, stalls or is paid for nothing.
"""

import ast
import cmath
import random
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from string import ascii_letters
from typing import Any

_Function = Callable[[complex], complex]

NO_ANSWER = "?"  # no Python and no expression: scores as any text of the wrong kind
LONGEST_ANSWER = 20_000  # characters; the longest answers of reasoning-gym's own have about 2,500

# Scorers that call `eval` on the answer: they look for a list of rows or characters.
LISTS = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})

# Scorers that call SymPy's `parse_expr` on the answer, which evaluates it too.
ARITHMETIC = frozenset({"countdown", "polynomial_multiplication", "puzzle24"})
INTEGRALS = frozenset({"intermediate_integration", "simple_integration"})
EXPRESSIONS = ARITHMETIC | INTEGRALS

# Scorers that repeat a move as often as the answer says.
MOVES = frozenset({"rubiks_cube", "rush_hour"})

# Nothing here can call, look up an attribute, repeat or loop.
_LIST = re.compile(r"(?!.*\bfor\b)[\w\s,'\"\[\]-]*", re.DOTALL)
_CHARACTERS = re.compile(r"[\w\s.+\-*/()]*", re.ASCII)
_LONG_EXPONENT = re.compile(r"[eE][+-]?\d{3}")  # 1e999999999 as a fraction has a billion digits
_LONG_COUNT = re.compile(r"\d{4}")
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant, ast.Name, ast.Call, ast.Load)
# name -> the function and its derivative
_FUNCTIONS: dict[str, tuple[_Function, _Function]] = {
    "exp": (cmath.exp, cmath.exp),
    "log": (cmath.log, lambda x: 1 / x),
    "ln": (cmath.log, lambda x: 1 / x),
    "sqrt": (cmath.sqrt, lambda x: 0.5 / cmath.sqrt(x)),
    "sin": (cmath.sin, cmath.cos),
    "cos": (cmath.cos, lambda x: -cmath.sin(x)),
    "tan": (cmath.tan, lambda x: 1 / cmath.cos(x) ** 2),
    "asin": (cmath.asin, lambda x: 1 / cmath.sqrt(1 - x * x)),
    "acos": (cmath.acos, lambda x: -1 / cmath.sqrt(1 - x * x)),
    "atan": (cmath.atan, lambda x: 1 / (1 + x * x)),
    "sinh": (cmath.sinh, cmath.cosh),
    "cosh": (cmath.cosh, cmath.sinh),
    "tanh": (cmath.tanh, lambda x: 1 / cmath.cosh(x) ** 2),
}
_LARGEST_NUMBER, _LARGEST_EXPONENT, _LONGEST = 10**15, 99, 1000


def scorable(task: str, answer: str, entry: Mapping[str, Any]) -> str:
    """Return `answer`, or a text that scores like it and is harmless to the scorer of the reasoning-gym task.

    A text that is not plain becomes `NO_ANSWER`. Plain is, for `LISTS`, text without calls, attributes and loops; for
    `ARITHMETIC`, numbers, one-letter variables and operators, with constant exponents up to 99 and no power of a
    power; for `MOVES`, counts of up to three digits. In `INTEGRALS`, which allow elementary functions too, an
    antiderivative of the problem's integrand becomes the problem's own answer: SymPy's `simplify`, which the scorers
    call, may take minutes. Other tasks compare text.

    `entry` is the problem as reasoning-gym made it. Its own answer always passes, as its author is no model.
    """
    if answer == entry["answer"]:
        return answer
    if task == "game_of_life_halting":  # counts every text as true, and true as right
        return answer if answer.strip().lower() == entry["answer"].lower() else ""
    if len(answer) > LONGEST_ANSWER:
        return NO_ANSWER
    if task in LISTS:
        return answer if _LIST.fullmatch(answer) else NO_ANSWER
    if task in ARITHMETIC:
        return answer if _parse(answer, with_functions=False) else NO_ANSWER
    if task in INTEGRALS:
        metadata = entry["metadata"]
        return entry["answer"] if _is_antiderivative(answer, metadata["integrand"], metadata["variable"]) else NO_ANSWER
    if task == "propositional_logic":  # parses in quadratic time
        return answer if len(answer) <= _LONGEST else NO_ANSWER
    if task == "codeio":  # compares trees, in the fourth power of their size
        return answer if len(answer) <= max(_LONGEST, 2 * len(entry["answer"])) else NO_ANSWER
    if task in MOVES:
        return NO_ANSWER if _LONG_COUNT.search(answer) else answer
    if task == "coin_flip":
        return NO_ANSWER if _LONG_EXPONENT.search(answer) or _is_mere_prefix(answer, entry["answer"]) else answer
    if task == "complex_arithmetic":  # the distance to nan counts as 0
        return NO_ANSWER if "nan" in answer.lower() else answer
    return answer


def _is_mere_prefix(answer: str, own: str) -> bool:
    """Return whether one number begins with the other and is another: the scorer of coin_flip has 0 for 0.25 right."""
    try:
        value, expected = float(Fraction(answer.replace(",", ""))), float(own)
    except (ValueError, ArithmeticError):
        return False
    texts = sorted((f"{value:.10g}", f"{expected:.10g}"), key=len)
    return texts[1].startswith(texts[0]) and abs(value - expected) > 1e-4


def _parse(text: str, with_functions: bool) -> ast.expr | None:
    """Return the expression of `text` if it is plain arithmetic, else `None`."""
    text = text.strip()
    if len(text) > _LONGEST or not _CHARACTERS.fullmatch(text) or _LONG_EXPONENT.search(text):
        return None
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: brackets too deep
        return None
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    if functions and not with_functions:
        return None
    return tree.body if all(_is_plain(node, id(node) in functions) for node in ast.walk(tree)) else None


def _is_plain(node: ast.AST, is_called: bool) -> bool:
    match node:
        case ast.Name(id=name):
            return name in _FUNCTIONS if is_called else len(name) == 1
        case ast.Constant(value=value):
            return isinstance(value, int | float) and value < _LARGEST_NUMBER
        case ast.Call(func=function, args=arguments, keywords=keywords):
            return isinstance(function, ast.Name) and len(arguments) == 1 and not keywords
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            powers = (part for part in ast.walk(base) if isinstance(part, ast.Pow))
            return next(powers, None) is None and _is_small(exponent)
        case _:
            return isinstance(node, _NODES)


def _is_small(exponent: ast.AST) -> bool:
    """Return whether `exponent` is a number, its negative, or a fraction of such, and at most 99."""
    match exponent:
        case ast.Constant(value=int() | float() as value):
            return value <= _LARGEST_EXPONENT
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_small(operand)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _is_small(left) and _is_small(right)
    return False


def _is_antiderivative(answer: str, integrand: str, variable: str) -> bool:
    """Return whether the derivative of `answer` is `integrand`: their values agree at six complex points.

    Two different expressions of this size do not. SymPy, which takes the variable for complex too, says the same
    wherever it can tell.
    """
    tree, target = _parse(answer, with_functions=True), _parse(integrand, with_functions=True)
    if tree is None or target is None:
        return False
    draw, compared = random.Random(0), 0
    constants = {letter: (complex(draw.random(), draw.random()), 0j) for letter in ascii_letters}
    for _ in range(6):
        point = constants | {variable: (cmath.rect(0.3 + draw.random(), draw.uniform(-3, 3)), 1 + 0j)}
        try:
            expected, _ = _evaluate(target, point)
        except (ArithmeticError, ValueError):  # a pole
            continue
        try:
            _, slope = _evaluate(tree, point)
        except (ArithmeticError, ValueError):
            return False
        if not cmath.isclose(slope, expected, rel_tol=1e-8, abs_tol=1e-8):
            return False
        compared += 1
    return compared > 0


def _evaluate(node: ast.expr, point: Mapping[str, tuple[complex, complex]]) -> tuple[complex, complex]:
    """Return the value of plain arithmetic and its derivative, where `point` gives those of each letter.

    Raises `ArithmeticError` or `ValueError` where it has none.
    """
    match node:
        case ast.Constant(value=int() | float() as value):
            return complex(value), 0j
        case ast.Name(id=name):
            return point[name]
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            function, derivative = _FUNCTIONS[name]
            inner, slope = _evaluate(argument, point)
            return function(inner), derivative(inner) * slope if slope else 0j
        case ast.UnaryOp(op=sign, operand=operand):
            inner, slope = _evaluate(operand, point)
            return (-inner, -slope) if isinstance(sign, ast.USub) else (inner, slope)
        case ast.BinOp(left=left, op=operator, right=right):
            (a, da), (b, db) = _evaluate(left, point), _evaluate(right, point)
            match operator:
                case ast.Add():
                    return a + b, da + db
                case ast.Sub():
                    return a - b, da - db
                case ast.Mult():
                    return a * b, da * b + a * db
                case ast.Div():
                    return a / b, (da * b - a * db) / b**2
                case ast.Pow():  # the exponent is a constant
                    return a**b, b * a ** (b - 1) * da if da else 0j
    raise ValueError(f"no arithmetic: {ast.dump(node)}")
