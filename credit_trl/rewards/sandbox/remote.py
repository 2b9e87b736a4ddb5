"""Test code and the code under test in two sandboxes: the tests call it, and only plain values come back.

Were both in one process, the code under test could pass every test: by replacing `exec` or the reporting function, by
reading the tests off the stack, or by returning an object whose `__eq__` says yes. Here its process is asked for
results and never for a verdict. Runs inside the sandbox as `remote.py worker FD` or `remote.py judge FD`, where FD is
the socket between the two, and never in the trainer's process. One request or reply is a line of JSON.
"""

import ast
import builtins
import functools
import json
import math
import os
import re
import site
import socket
import sys
import types
from collections.abc import Callable
from typing import Any, TextIO

SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def pack(value: Any, reference: Callable[[Any], int]) -> Any:
    """Return `value` as JSON: plain values by content, any other object by the number that `reference` gives it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for name, kind in SEQUENCES.items():
        if isinstance(value, kind):
            return [name, *(pack(item, reference) for item in value)]
    if isinstance(value, dict):
        return ["dict", *([pack(key, reference), pack(item, reference)] for key, item in value.items())]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    return ["object", reference(value)]


def unpack(packed: Any, find: Callable[[int], Any]) -> Any:
    """Return the value that `pack` packed, of built-in types; `find` gives the object of a number."""
    if not isinstance(packed, list):
        return packed
    kind, *items = packed
    if kind in SEQUENCES:
        return SEQUENCES[kind](unpack(item, find) for item in items)
    if kind == "dict":
        return {unpack(key, find): unpack(item, find) for key, item in items}
    return bytes.fromhex(items[0]) if kind == "bytes" else find(items[0])


def serve(channel: TextIO, prelude: bytes, code: bytes) -> None:
    """Run `code`, then answer requests for its attributes and calls until the judge hangs up."""
    module = types.ModuleType("solution")  # not "__main__": what runs only as a script is not under test
    sys.modules["solution"] = module
    site.setquit()  # `exit` and `quit`, which are not there under -S
    exec(compile(prelude, "prelude.py", "exec"), module.__dict__)  # nosec B102
    exec(compile(code, "solution.py", "exec"), module.__dict__)  # what this process is for  # nosec B102
    objects: list[Any] = [module]

    def reference(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    for line in channel:
        request = json.loads(line)
        target = objects[request["target"]]
        try:
            if "name" in request:
                result = getattr(target, request["name"])
            else:
                positional, named = unpack(request["arguments"], objects.__getitem__)
                result = target(*positional, **named)
            reply = {"result": pack(result, reference)}
        except BaseException as error:  # the code under test may raise anything; the tests may expect it to
            reply = {"error": type(error).__name__, "message": str(error)}
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


class Remote:
    """Stand for an object of the code under test.

    It equals nothing but itself: no method of its own decides a comparison.
    """

    def __init__(self, channel: TextIO, number: int) -> None:
        self._channel, self._number = channel, number

    def _ask(self, **request: Any) -> Any:
        self._channel.write(json.dumps({"target": self._number, **request}) + "\n")
        self._channel.flush()
        line = self._channel.readline()
        if not line:
            raise ConnectionError("the code under test has ended")
        reply = json.loads(line)
        if "error" in reply:
            kind = getattr(builtins, reply["error"], RuntimeError)
            raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError)(reply["message"])
        return unpack(reply["result"], lambda number: Remote(self._channel, number))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask(name=name)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._ask(arguments=pack((positional, named), Remote._number_of))

    @staticmethod
    def _number_of(value: Any) -> int:
        if not isinstance(value, Remote):
            raise TypeError(f"a test cannot pass a {type(value).__name__} to the code under test")
        return value._number


def call_solution(solution: Remote, name: str, arguments: list) -> Any:
    """Call the method of the class `Solution` where the code has one, or else its function, as LiveCodeBench does."""
    try:
        owner = solution.Solution
    except AttributeError:
        return getattr(solution, name)(*arguments)
    return getattr(owner(), name)(*arguments)


def same_result(value: Any, expected: Any) -> bool:
    """Return whether a result is the expected value from JSON: tuples are lists, and floats may differ by rounding.

    LiveCodeBench's `grade_call_based` takes an outer tuple for a list, the grader of APPS inner ones too.
    """
    if isinstance(value, list | tuple) and isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(map(same_result, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same_result(value[key], expected[key]) for key in expected)
    if isinstance(value, float) and isinstance(expected, int | float):
        return value == expected or math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9)
    return bool(value == expected)


class Raises:
    """Stand for `pytest.raises`, which is not there in the sandbox: the block must raise one of `kinds`."""

    def __init__(self, kinds: Any, match: str | None = None) -> None:
        self.kinds, self.match, self.value = kinds, match, None

    def __enter__(self) -> "Raises":
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> bool:
        if kind is None:
            raise AssertionError("nothing was raised")
        self.value = value
        return issubclass(kind, self.kinds) and (self.match is None or re.search(self.match, str(value)) is not None)


def stand_in_for_pytest() -> types.ModuleType:
    """Return a module with what tests of data sets use of pytest: `raises`, `approx` and `main`."""
    module = types.ModuleType("pytest")
    vars(module).update(raises=Raises, approx=Approximately, main=lambda *arguments: 0)
    return module


class Approximately:
    """Stand for `pytest.approx` of a number or a list of them, with its default tolerances."""

    def __init__(self, expected: Any, rel: float = 1e-6, abs: float = 1e-12) -> None:
        self.expected, self.rel, self.abs = expected, rel, abs

    def __eq__(self, value: object) -> bool:
        if isinstance(self.expected, list | tuple):
            items = [Approximately(item, self.rel, self.abs) for item in self.expected]
            return isinstance(value, list | tuple) and list(value) == items
        return isinstance(value, int | float) and math.isclose(value, self.expected, rel_tol=self.rel, abs_tol=self.abs)


def passes(test: str, solution: Remote) -> bool:
    """Return whether `test` runs to its end, and so do the functions `test_...` that it defines, as pytest calls them.

    Names that it uses come from the code under test, except built-ins and standard modules: a solution that defines
    `abs` or `math` must not decide what the tests mean by them.
    """
    namespace: dict[str, Any] = {
        "__name__": "tests",
        "__call_solution__": functools.partial(call_solution, solution),
        "__same_result__": same_result,
    }
    try:
        tree = ast.parse(test)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for name in sorted(used - set(dir(builtins))):
            if name in sys.stdlib_module_names:
                namespace[name] = __import__(name)
                continue
            try:
                namespace[name] = getattr(solution, name)
            except AttributeError:
                continue  # the test defines it, or fails with a NameError
        exec(compile(tree, "tests.py", "exec"), namespace)  # in a sandbox of its own  # nosec B102
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                namespace[node.name]()
        solution._ask(name="__name__")  # a test that calls nothing fails too where the code does not load or has ended
    except BaseException:  # a test fails by raising, whatever it raises
        return False
    return True


def judge(channel: TextIO, tests: list[str]) -> None:
    """Write `1` or `0` for every test to the standard output, which the tests themselves cannot reach by printing."""
    verdicts = os.dup(1)
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    sys.modules["pytest"] = stand_in_for_pytest()
    for test in tests:
        solution: Any = Remote(channel, 0)
        sys.modules["solution"] = solution  # tests that import it, as KodCode's do
        os.write(verdicts, b"1" if passes(test, solution) else b"0")


def main() -> None:
    sys.set_int_max_str_digits(0)
    role, descriptor = sys.argv[1], int(sys.argv[2])
    with socket.socket(fileno=descriptor).makefile("rw", encoding="utf-8") as channel:
        if role == "worker":
            with open("/program/prelude.py", "rb") as prelude, open("/program/code.py", "rb") as file:
                serve(channel, prelude.read(), file.read())
        else:
            with open("/program/tests.json", encoding="utf-8") as file:
                judge(channel, json.load(file))


if __name__ == "__main__":
    main()
