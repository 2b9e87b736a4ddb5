"""The reward `code`: it runs the Python of a completion against tests, in a sandbox."""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .answers import RewardFunction, completion_text
from .sandbox import Limits, check_sandbox, run_tests
from .sandbox.rules import CALL, SAME
from .statements import final_part

# An opening fence: up to three other marks before it, as in a list or a quotation; the language in any case, with a
# version, and what follows it on the line, such as `title="a.py"`.
_FENCE = re.compile(r"(?P<indent>[ \t]*)(?:[-*>]\s+|\d+\.\s+)?(?P<mark>`{3,}|~{3,})[ \t]*\{?\.?(?P<language>[^`\n]*)")
_PYTHON = re.compile(r"(?:python|py)[ \t]?3?(?:\.\d+)*\b(?![-+#])", re.IGNORECASE)


def extract_code(text: str) -> str | None:
    """Return the content of the last closed Python block of `text`, or `None` where there is none.

    A block is fenced by ```` ``` ```` or `~~~`, with `python`, `py`, `python3` or the like in any case. A block that is
    indented, as under an item of a list, is given without its indentation; line ends become `\\n`. The block may stand
    in `<answer>` tags. A block that is never closed was cut short and does not count, nor does one before `</think>`.
    """
    blocks: list[str] = []
    fence = language = ""
    lines: list[str] = []
    for line in final_part(text).replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n"):
        line = line.removeprefix("<answer>")
        if not fence:
            opening = _FENCE.fullmatch(line)
            if opening:
                fence, language, lines = opening["mark"], opening["language"], []
        elif re.fullmatch(rf"[ \t]*{re.escape(fence)}{fence[0]}*[ \t.]*(?:(?:</answer>|<\|).*)?", line):
            if _PYTHON.match(language.strip()):
                blocks.append(textwrap.dedent("".join(f"{content}\n" for content in lines)))
            fence = ""
        else:
            lines.append(line)
    return blocks[-1] if blocks else None


def read_tests(tests: str | Mapping[str, Any] | Sequence[str | dict[str, Any]]) -> list[str | tuple[str, str]]:
    """Return the tests of one problem, each as test code or as a pair of standard input and expected output.

    `tests` is a list, or its JSON (as in LiveCodeBench's columns), of
    - strings, each a piece of test code such as `assert add(1, 2) == 3`. Functions `test_...` in it are called, and it
      may import from `solution`, as KodCode's tests do;
    - `{"input": ..., "output": ...}`: what the program reads and what it has to print;
    - `{"input": ..., "output": ..., "fn_name": "add"}`: the arguments, as JSON with one on each line, and the JSON of
      what the method of the class `Solution`, or else the function, returns. Any other expression may stand for it,
      such as `"Bank(3).total"`.

    It may also be the mapping with `inputs`, `outputs` and perhaps `fn_name` that APPS and TACO have in `input_output`,
    or its JSON.

    Raises `ValueError` for anything else, and where there is no test.
    """
    if isinstance(tests, str):
        text = tests
        try:
            tests = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the column `tests` has a text that is no JSON ({error}): {text[:100]!r}") from error
    found: list[str | tuple[str, str]]
    if isinstance(tests, Mapping):
        found = _read_pairs(tests)
    elif isinstance(tests, Sequence) and not isinstance(tests, str):
        found = [_read_test(test) for test in tests]
    else:
        raise ValueError(f"the column `tests` must hold a list of tests or its JSON, not {tests!r}")
    if not found:
        raise ValueError("the column `tests` has a problem without tests: drop it from the data set")
    return found


def _read_test(test: Any) -> str | tuple[str, str]:
    if isinstance(test, str):
        return test
    if not (isinstance(test, dict) and isinstance(test.get("input"), str) and isinstance(test.get("output"), str)):
        raise ValueError(f"the column `tests` has a test that is neither code nor an input with an output: {test!r}")
    if test.get("fn_name"):
        try:
            for text in [*test["input"].splitlines(), test["output"]]:
                json.loads(
                    text, parse_int=str
                )  # the judge reads integers of any length, this process up to 4,300 digits
        except json.JSONDecodeError as error:
            raise ValueError(
                f"the column `tests` has a test of a function whose values are no JSON ({error}): {test!r}"
            ) from error
        arguments = f"[json.loads(text) for text in {test['input'].splitlines()!r}]"
        return _call_test(test["fn_name"], arguments, f"[json.loads({test['output']!r})]")
    if test.get("testtype") == "functional":
        raise ValueError(
            "the column `tests` has a functional test without a function: give each test the name that it calls as "
            '`fn_name`, such as "add"'
        )
    return test["input"], test["output"]


def _read_pairs(tests: Mapping[str, Any]) -> list[str | tuple[str, str]]:
    """Read the tests of APPS and TACO, by the rules of their graders (`testing_util.py` in both repositories)."""
    inputs, outputs = tests.get("inputs"), tests.get("outputs")
    if not (isinstance(inputs, list) and isinstance(outputs, list) and len(inputs) == len(outputs)):
        raise ValueError("the column `tests` has a mapping without `inputs` and as many `outputs`")
    if tests.get("fn_name"):
        found: list[str | tuple[str, str]] = []
        for given, wanted in zip(inputs, outputs, strict=True):
            # A value may stand in a list of its own: both are right.
            right = [wanted, *wanted] if isinstance(wanted, list) and len(wanted) == 1 else [wanted]
            found.append(_call_test(tests["fn_name"], repr(given), repr(right)))
        return found
    # Text, or a list of lines.
    texts = ["\n".join(map(str, text)) if isinstance(text, list) else str(text) for text in [*inputs, *outputs]]
    return list(zip(texts[: len(inputs)], texts[len(inputs) :], strict=True))


def _call_test(function: str, arguments: str, right: str) -> str:
    """Return test code that calls `function` and asserts that it returns a value of the list `right`, all as source."""
    called = f"{CALL}({function!r}, {arguments})" if function.isidentifier() else f"{function}(*{arguments})"
    return f"result = {called}\nassert any({SAME}(result, value) for value in {right})"


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
    """Return a reward function that runs the Python of a completion against the tests in the column `tests`.

    The reward is the share of the tests that pass, or with `binary` 1.0 where all do and else 0.0; it is 0.0 where a
    completion has no closed Python block (the last one counts: `extract_code`). `read_tests` says what tests look like,
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
