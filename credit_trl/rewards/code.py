"""A reward that runs the Python of a completion against tests, in a sandbox."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .answers import RewardFunction, completion_text
from .sandbox import Limits, check_sandbox, run_tests

_CODE_BLOCK = re.compile(r"^[ \t]*```(?:python3?|py)[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


def extract_code(text: str) -> str | None:
    """The content of the last closed block ```` ```python ```` of `text`, or `None` where there is none."""
    blocks = _CODE_BLOCK.findall(text)
    return blocks[-1] if blocks else None


def read_tests(tests: str | Sequence[str | dict[str, Any]]) -> list[str | tuple[str, str]]:
    """The tests of one problem, each as test code or as a pair of standard input and expected output.

    `tests` is a list, or its JSON (as in LiveCodeBench's columns), of
    - strings, each a piece of test code such as `assert add(1, 2) == 3`;
    - `{"input": ..., "output": ...}`: what the program reads and what it has to print;
    - `{"input": ..., "output": ..., "fn_name": "add"}`: the arguments, as JSON with one on each line, and the JSON of
      what the function returns. For a method write what the tests call, as in `"Solution().add"`.

    Raises `ValueError` for anything else, and where there is no test.
    """
    found: list[str | tuple[str, str]] = []
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except json.JSONDecodeError as error:
            raise ValueError(f"the column `tests` has a text that is no JSON ({error}): {tests[:100]!r}") from error
    if not isinstance(tests, Sequence) or isinstance(tests, str):
        raise ValueError(f"the column `tests` must hold a list of tests or its JSON, not {tests!r}")
    for test in tests:
        if isinstance(test, str):
            found.append(test)
        elif not (
            isinstance(test, dict) and isinstance(test.get("input"), str) and isinstance(test.get("output"), str)
        ):
            raise ValueError(
                f"the column `tests` has a test that is neither code nor an input with an output: {test!r}"
            )
        elif test.get("fn_name"):
            try:
                arguments = [json.loads(line) for line in test["input"].splitlines()]
                result = json.loads(test["output"])
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"the column `tests` has a test of a function whose values are no JSON ({error}): {test!r}"
                ) from error
            found.append(f"assert {test['fn_name']}(*{arguments!r}) == {result!r}")
        elif test.get("testtype") == "functional":
            raise ValueError(
                "the column `tests` has a functional test without a function: give each test the name that it calls as "
                '`fn_name`, such as "Solution().add"'
            )
        else:
            found.append((test["input"], test["output"]))
    if not found:
        raise ValueError("the column `tests` has a problem without tests: drop it from the data set")
    return found


def make_code_reward(
    *,
    timeout: float = Limits.timeout,
    total_timeout: float = Limits.total_timeout,
    memory_mb: int = Limits.memory_mb,
    processes: int = Limits.processes,
    files_mb: int = Limits.files_mb,
    concurrency: int = 4,
    binary: bool = False,
) -> RewardFunction:
    """A reward function that runs the Python of a completion against the tests in the column `tests`.

    The reward is the share of the tests that pass, or with `binary` 1.0 where all do and else 0.0; it is 0.0 where a
    completion has no closed ```` ```python ```` block (the last one counts). `read_tests` says what tests look like,
    `docs/guides/rewards.md` what the sandbox does and does not protect against.

    `timeout` (seconds of wall-clock time) holds for each input/output test, and for all test code of a completion
    together; `total_timeout` for a completion with all its tests, of which those left then have failed. A batch of n
    completions so takes at most about `ceil(n / concurrency) * total_timeout` seconds. `memory_mb` is per process,
    `processes` counts threads too, `files_mb` is all that may be written.
    `concurrency` completions run at a time. A bad limit is refused here, and in a call tests that cannot be read (by
    their row) and a machine that cannot isolate the code, all with a `ValueError`.
    """
    limits = Limits(timeout, total_timeout, memory_mb, processes, files_mb)
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency!r} must be at least 1")

    def score(completion: str | list[dict[str, str]], tests: list[str | tuple[str, str]]) -> float:
        code = extract_code(completion_text(completion))
        if code is None:
            return 0.0
        passed = run_tests(code, tests, limits, stop_early=binary)
        return float(all(passed)) if binary else sum(passed) / len(passed)

    def code_reward(
        completions: Sequence[str | list[dict[str, str]]],
        tests: Sequence[str | Sequence[str | dict[str, Any]]],
        **kwargs: Any,
    ) -> list[float]:
        problems = []
        for row, column in enumerate(tests):
            try:
                problems.append(read_tests(column))
            except ValueError as error:
                raise ValueError(f"code_reward cannot read the tests of row {row} of the batch: {error}") from error
        check_sandbox()
        with ThreadPoolExecutor(concurrency) as pool:  # threads that wait for processes
            return list(pool.map(score, completions, problems))

    code_reward.__doc__ = make_code_reward.__doc__
    return code_reward


code_reward = make_code_reward()
