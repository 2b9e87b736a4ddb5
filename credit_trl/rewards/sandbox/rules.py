"""The rules of public graders of programs: what a program may count on, and which outputs are equal.

LiveCodeBench's are those of github.com/LiveCodeBench/LiveCodeBench, lcb_runner/evaluation/testing_util.py.
"""

import math
from decimal import Decimal, InvalidOperation

# What LiveCodeBench puts before every program, so that starter code with `List[int]` runs as it stands: these modules,
# all of their names, and deeper recursion (`import_string` there). Integers print up to 50,000 digits, as set in
# compute_code_generation_metrics.py of the same folder.
_MODULES = [
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json",
]  # fmt: skip
PRELUDE = "".join(
    [f"from {name} import *\n" for name in [*_MODULES, "builtins", "typing"]]
    + [f"import {name}\n" for name in _MODULES]
    + ["sys.setrecursionlimit(50000)\nsys.set_int_max_str_digits(50000)\n"]
)
CALL = "__call_solution__"  # in test code: calls a function of the solution, or a method of its class `Solution`
SAME = "__same_result__"  # in test code: compares what it returned with the expected value
ROUNDING = 1e-9  # how far a computed decimal number may be from the expected one, relatively or absolutely; our choice


def prints_the_same(output: str, expected: str) -> bool:
    """Return whether two outputs are equal, by the rules of LiveCodeBench's `grade_stdio`.

    There are as many lines, up to empty ones at both ends. Two lines are equal without the white space around them, or
    where both are lists of numbers with equal values: 2.5 is 2.50. Beyond these rules, numbers with a decimal point may
    differ by `ROUNDING`.
    """
    lines, wanted = output.strip().split("\n"), expected.strip().split("\n")
    return len(lines) == len(wanted) and all(map(_same_line, lines, wanted))


def _same_line(line: str, wanted: str) -> bool:
    if line.strip() == wanted.strip():
        return True
    words, wanted_words = line.split(), wanted.split()
    return len(words) == len(wanted_words) and all(map(_same_number, words, wanted_words))


def _same_number(word: str, wanted: str) -> bool:
    try:
        value, expected = Decimal(word), Decimal(wanted)
    except InvalidOperation:
        return False
    if value == expected:  # false for nan
        return True
    if not ("." in word and "." in wanted and value.is_finite() and expected.is_finite()):
        return False
    return math.isclose(value, expected, rel_tol=ROUNDING, abs_tol=ROUNDING)
