"""The code reward where nothing runs: what is read from completions and data sets, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from credit_trl.rewards import sandbox
from credit_trl.rewards.code import code_reward, extract_code, make_code_reward, read_tests
from credit_trl.rewards.registry import check_columns, load_reward


def test_extract_code_takes_the_last_closed_block():
    text = "```python\nfirst\n```\nno:\n```\nplain\n```\n```py\ns = '```'\n```\n```python\nnever closed"
    assert extract_code(text) == "s = '```'\n"
    assert extract_code("print(1)") is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```{.python}\nx\n```", "x\n"),
        ("```python\nx\n```<|im_end|>", "x\n"),
        ("<think>```python\nbad\n```</think>\n```python\nx\n```", "x\n"),
        ("<think>\n```python\nbad\n```\n</think>\nI do not know.", None),
        ("```python-repl\n>>> x\n```", None),
    ],
)
def test_extract_code_from_what_models_write(text, code):
    assert extract_code(text) == code


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ([], "without tests"),
        ([{"input": "1"}], "neither code nor an input with an output"),
        ([{"input": "1", "output": "2", "testtype": "functional"}], "`fn_name`"),
        ([{"input": "one", "output": "2", "fn_name": "f"}], "values are no JSON .*one"),
        ("assert f(1) == 2", "no JSON .*assert f"),
        ('"assert f(1) == 2"', "must hold a list of tests"),
        (None, "must hold a list of tests"),
    ],
)
def test_bad_tests_are_refused_by_their_row(tests, message):
    with pytest.raises(ValueError, match=f"tests of row 1 of the batch: .*{message}"):
        code_reward(["```python\n\n```"] * 3, [["assert True"], tests, ["assert True"]])


def test_a_machine_without_isolation_is_refused():
    # A process that may not make namespaces, as under Docker's default profile.
    code = f"""
import sys
sys.path.insert(0, {str(Path(sandbox.__file__).parents[1])!r})
import sandbox
from sandbox import launcher
launcher.call("prctl", launcher.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
launcher.filter_calls()
for attempt in range(2):
    try:
        sandbox.run_tests("open('ran', 'w')", ["assert True"], sandbox.Limits())
    except ValueError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.count("cannot isolate the model's code here ([Errno 1] unshare: Operation not permitted)") == 2
    assert "user.max_user_namespaces" in run.stdout


def test_options_and_registration():
    assert read_tests('[{"input": "1", "output": "2", "testtype": "stdin"}]') == [("1", "2")]
    assert load_reward("code") is code_reward and code_reward.__name__ == "code_reward"
    with pytest.raises(ValueError, match="code_reward needs a column `tests`"):
        check_columns([code_reward], ["prompt"])
    for option in (
        dict(timeout=0),
        dict(total_timeout=-1),
        dict(timeout=float("inf")),
        dict(memory_mb=1),
        dict(processes=0),
        dict(files_mb=0),
    ):
        with pytest.raises(ValueError, match=next(iter(option))):
            make_code_reward(**option)
    with pytest.raises(ValueError, match="concurrency"):
        make_code_reward(concurrency=0)
