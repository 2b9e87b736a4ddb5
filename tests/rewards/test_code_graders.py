"""The code reward by the rules of public graders (LiveCodeBench, APPS, KodCode), and fences as models write them."""

import json

import pytest

from credit_trl.rewards.code import extract_code, make_code_reward, read_tests
from credit_trl.rewards.sandbox import check_sandbox
from credit_trl.rewards.sandbox.rules import prints_the_same

try:
    check_sandbox()
except ValueError as reason:
    pytestmark = pytest.mark.skip(reason=str(reason))


def reward(code, tests):
    (score,) = make_code_reward(timeout=5, memory_mb=256)([f"```python\n{code}\n```"], [tests])
    return score


def call(name, given, wanted):
    return {"input": "\n".join(map(json.dumps, given)), "output": json.dumps(wanted), "fn_name": name}


def prints(wanted, given=""):
    return [{"input": given, "output": wanted}]


STARTER = "class Solution:\n    def total(self, nums: List[int]) -> int:\n        return "


@pytest.mark.parametrize(
    ("code", "tests", "expected"),
    [
        (STARTER + "sum(nums)", [call("total", [[1, 2]], 3)], 1),
        (STARTER + "sum(nums)", [call("Solution().total", [[1, 2]], 3)], 1),
        (STARTER + "heapq.nsmallest(1, nums)[0] + Counter(nums)[1] + gcd(4, 6)", [call("total", [[1]], 4)], 1),
        ("def total(nums: List[int]): return sum(nums)", [call("total", [[1, 2]], 3)], 1),
        ("def total(nums: list[int]): return sum(nums)", [call("total", [[1, 2]], 4)], 0),
        ("def pair(x): return (x, x)", [call("pair", [3], [3, 3])], 1),
        ("def pair(x): return [(x, x), (x, 4)]", [call("pair", [3], [[3, 3], [3, 4]])], 1),
        ("def pair(x): return (x, x, x)", [call("pair", [3], [3, 3])], 0),
        ("def pair(x): return {x, 4}", [call("pair", [3], [3, 4])], 0),
        ("def f(x): return x * 3", [call("f", [0.1], 0.3)], 1),
        ("def f(x): return [x * 3, 'a']", [call("f", [0.1], [0.3, "a"])], 1),
        ("def f(x): return x * 3", [call("f", [0.1], 0.300001)], 0),
        ("def f(x): return 50000000000000000", [call("f", [1], 50000000000000001)], 0),
        ("def f(x): return x > 0", [call("f", [1], True)], 1),
        ("def f(x): return str(x)", [call("f", [1], 1)], 0),
        ("def f(d): return {'a': 0.1 * 3}", [call("f", [{}], {"a": 0.3})], 1),
        ("class Bank:\n    def __init__(self, n): self.n = n\n    def total(self, m): return self.n + m",
         [call("Bank(3).total", [4], 7)], 1),
        ("print(10**5000)", prints("1" + "0" * 5000), 1),
        ("def f(x):\n    return x * 10", [{"input": "1" + "0" * 4999, "output": "1" + "0" * 5000, "fn_name": "f"}], 1),
        ("print(2.5)", prints("2.50\n"), 1),
        ("print(0.1 * 3)", prints("0.3\n"), 1),
        ("print(1, 2.0, 3)", prints("1 2 3\n"), 1),
        ("import sys\nprint(int(sys.stdin.readline()) * 2)\nsys.exit(1)", prints("6", "3\n"), 1),
        ("def solve(a: List[int]):\n    print(max(a), deque([1]))\nif __name__ == '__main__':\n    solve([1, 3, 2])",
         prints("3 deque([1])"), 1),
        ("from __future__ import annotations\nprint(gcd(4, 6))", prints("2"), 1),
        ("def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\nprint(depth(5000))", prints("5000"), 1),
        ("print(1 / 0)", prints("1"), 0),
        ("print('1')\nraise ValueError", prints("1"), 0),
    ],
)  # fmt: skip
def test_livecodebenchs_rules(code, tests, expected):
    assert reward(code, tests) == expected


@pytest.mark.parametrize(
    ("output", "wanted", "same"),
    [
        ("1\n2\n\n", "1\n2", True),
        ("  1 \n 2", "1\n2", True),
        ("1\n\n2", "1\n2", False),
        ("1 2", "1\n2", False),
        ("1   2", "1 2", True),
        ("a   b", "a b", False),
        ("1e3", "1000", True),
        ("2.5", "2.50", True),
        ("0.30000000000000004", "0.3", True),
        ("0.3001", "0.3", False),
        ("50000000000000000", "50000000000000001", False),
        ("Yes", "YES", False),
        ("nan", "nan", True),
        ("NaN", "nan", False),
        ("inf", "Infinity", True),
        ("", "", True),
        ("1", "", False),
    ],
)
def test_equal_outputs(output, wanted, same):
    assert prints_the_same(output, wanted) is same


def test_the_mapping_of_apps_and_taco():
    two = "print(int(input()) * 2)"
    assert reward(two, json.dumps({"inputs": ["3\n", "4\n"], "outputs": ["6\n", "9\n"]})) == 0.5
    assert reward("print(input() + input())", {"inputs": [["a", "b"]], "outputs": [["ab"]]}) == 1
    code = "class Solution:\n    def twice(self, n: int, m=0): return 2 * n + m"
    pairs = {"fn_name": "twice", "inputs": [[3], [3, 1], [3]], "outputs": [6, [7], [7]]}
    assert reward(code, json.dumps(pairs)) == pytest.approx(2 / 3)
    assert reward("def same(a): return a", {"fn_name": "same", "inputs": [[[1]]], "outputs": [[1]]}) == 1
    for bad in ({}, {"inputs": ["1"]}, {"inputs": ["1"], "outputs": []}, {"inputs": "1", "outputs": "1"}):
        with pytest.raises(ValueError, match="as many `outputs`"):
            read_tests(bad)
    with pytest.raises(ValueError, match="without tests"):
        read_tests('{"inputs": [], "outputs": []}')


KODCODE = """from solution import half
import pytest

def test_even():
    assert half(4) == 2

def test_near():
    assert half(0.2) == pytest.approx(0.1)

def test_refusal():
    with pytest.raises(TypeError, match="two"):
        half("a")
"""


def test_kodcodes_test_files():
    assert reward("def half(x):\n    if isinstance(x, str): raise TypeError('two')\n    return x / 2", [KODCODE]) == 1
    assert reward("def half(x):\n    if isinstance(x, str): raise TypeError('one')\n    return x / 2", [KODCODE]) == 0
    assert reward("def half(x): return x / 2", [KODCODE]) == 0
    assert reward("def half(x):\n    if isinstance(x, str): raise TypeError('two')\n    return x // 2", [KODCODE]) == 0
    assert reward("def other(x): return x", [KODCODE]) == 0
    raises_nothing = "import pytest\ndef test_it():\n    with pytest.raises(ValueError):\n        f()"
    assert reward("def f(): pass", [raises_nothing]) == 0
    # Test code of other data sets imports what it needs, and so must the solution.
    assert reward("def f(x: List[int]): return x", ["assert f([1]) == [1]"]) == 0


PROGRAM = "if True:\n    print(1)\n"


@pytest.mark.parametrize(
    "text",
    [
        "```python\n%s```",
        "```Python\n%s```",
        "```PYTHON3\n%s```",
        "``` python\n%s```",
        "```python3.11\n%s```",
        "```Python 3\n%s```",
        "```py\n%s```\n",
        "```python title=\"a.py\"\n%s```",
        "````python\n%s````",
        "~~~python\n%s~~~",
        "<answer>```python\n%s```</answer>",
        "<answer>\n```python\n%s```\n</answer>",
        "```python\nprint(0)\n```\nBetter:\n```python\n%s```\nDone.",
        "```python\n%s```\nIt prints:\n```\n1\n```",
        "```python\n%s```\n```c++\nint main();\n```",
    ],
)  # fmt: skip
def test_fences(text):
    text = text.replace("%s", PROGRAM)
    assert extract_code(text) == PROGRAM
    assert extract_code(text.replace("\n", "\r\n")) == PROGRAM


def test_an_indented_block_loses_its_indentation():
    indented = "1. Here:\n\n   ```python\n   if True:\n       print(1)\n\n   ```\nDone."
    assert extract_code(indented) == "if True:\n    print(1)\n\n"
    assert extract_code("- ```python\n  if True:\n      print(1)\n  ```") == PROGRAM
    tabs = "\t```python\n\tif True:\n\t    print(1)\n\t```"
    assert extract_code(tabs) == PROGRAM


@pytest.mark.parametrize(
    "text",
    ["```\nplain\n```", "```python\ncut", "```javascript\nx\n```", "```pycon\n>>> 1\n```", "", "~~~python\nx\n```"],
)
def test_what_is_no_closed_python_block(text):
    assert extract_code(text) is None
