"""The code reward: right programs pass, and hostile ones neither pass, nor outlive their run, nor reach the host."""

import functools
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from credit_trl import SRPOConfig, SRPOTrainer
from credit_trl.rewards import sandbox
from credit_trl.rewards.code import make_code_reward
from credit_trl.rewards.sandbox import Limits, SandboxError, check_sandbox
from credit_trl.rewards.sandbox.launcher import SYSTEM_CALLS
from credit_trl.testbed import BASE_MODEL
from tests.helpers.training import QUIET_ON_CPU

try:
    check_sandbox()
except ValueError as reason:  # e.g. in a container that forbids user namespaces, where the reward refuses to run
    pytestmark = pytest.mark.skip(reason=str(reason))

LIMITS = dict(timeout=1.0, memory_mb=256, processes=4, files_mb=1)
ECHO = {"input": "7\n", "output": "7\n"}


def reward(code: str, *tests, **limits) -> float:
    (score,) = make_code_reward(**{**LIMITS, **limits})([f"```python\n{code}\n```"], [list(tests)])
    return score


def runs(code: str, **limits) -> bool:
    """Whether the assertions in `code` hold inside the sandbox."""
    return reward(code + "\nprint('ran to its end')", {"input": "", "output": "ran to its end"}, **limits) == 1.0


def children() -> set[str]:
    """Process ids of all descendants of this process, those that left its session included."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[path.parent.name] = path.read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
    found = {str(os.getpid())}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {str(os.getpid())}


def commands() -> list[str]:
    """Command lines of every process of the machine."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return lines


@pytest.fixture(autouse=True)
def nothing_left():
    """No test leaves a process behind, or takes long, whatever the code did."""
    before, start = children(), time.monotonic()
    yield
    assert children() <= before
    assert time.monotonic() - start < 15


def test_share_of_tests_or_all_in_both_forms_of_completion():
    completion = "First\n```python\nprint('8')\n```\nor better\n```python\nprint(input())\n```"
    tests = [ECHO, {"input": "x", "output": "x"}, {"input": "x", "output": "y"}]
    chat = [{"role": "assistant", "content": completion}]
    assert make_code_reward(**LIMITS)([completion, chat], [tests, tests[:2]]) == [2 / 3, 1.0]
    assert make_code_reward(**LIMITS, binary=True)([completion, chat], [tests, tests[:2]]) == [0.0, 1.0]


def test_test_code_calls_functions_and_objects_of_the_solution():
    code = """
import dataclasses
def add(a, b=1): return a + b
def same(value): return value
def fail(): raise KeyError("no")
@dataclasses.dataclass
class Box:
    value: int
    def plus(self, other): return Box(self.value + other.value)
if __name__ == "__main__": input()
"""
    raises = "try:\n    fail()\nexcept KeyError:\n    pass\nelse:\n    raise AssertionError"
    kept = "value = [None, True, 1.5, 'é', b'\\xff', {1: (2,)}, {3}, 10**5000]\nassert same(value) == value"
    tests = [
        "assert add(1, b=2) == 3",
        "def check(candidate):\n    assert candidate(1) == 2\ncheck(add)",
        "assert Box(1).plus(Box(2)).value == 3",
        raises,
        kept + "\nassert type(same(value)[5][1]) is tuple and math.isnan(same(math.nan))",
        {"input": "1\n2", "output": "3", "fn_name": "add"},
    ]
    wrong = ["assert add(1, 2) == 4", "assert missing(1)", "assert add(1) ==", "import sys; sys.exit(0 * fail())"]
    assert reward(code, *tests) == 1.0
    assert reward(code, *tests, *wrong) == 0.6


def test_a_program_may_leave_by_exit_as_scripts_do():
    assert reward("print(input())\nexit()", ECHO) == reward("print(input()); quit(0)", ECHO) == 1.0
    assert reward("print(input()); exit(1)", ECHO) == 1.0  # as in LiveCodeBench
    assert reward("def f(x): return x + 1 if x else exit()", "assert f(1) == 2", "assert f(0) == 1") == 0.5
    raises = "try:\n    f(0)\nexcept RuntimeError as error:\n    assert str(error) == '3'\nelse:\n    assert False"
    assert reward("def f(x): exit(3)", raises) == 1.0


def test_white_space_around_lines_does_not_count_and_an_error_does():
    assert reward("print('a  \\nb\\n')", {"input": "", "output": "a\nb"}) == 1.0
    assert reward("print('a\\n\\nb')", {"input": "", "output": "a\nb"}) == 0.0
    assert reward("print(input()); 1 / 0", ECHO) == 0.0
    assert reward("print(input()); import os; os._exit(2)", ECHO) == 0.0


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import sys; sys.stdin.read(); input()",
        "import signal\nfor s in {*range(1, 32)} - {9, 17, 19}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    ],
)
def test_time_is_bounded(code):
    start = time.monotonic()
    assert reward(code, ECHO) == 0.0
    assert reward(code, "assert f()", "assert g()") == 0.0
    assert time.monotonic() - start < 6


def test_test_code_that_calls_nothing_needs_a_program_that_runs():
    assert reward("def f():\n    while True: pass", "assert True", "assert f()", "assert True") == 1 / 3
    assert reward("1 / 0", "assert True") == reward("def f(", "assert True") == 0.0


def test_time_of_all_tests_together_bounds_a_batch():
    # The first test is passed. Every other one would take 4 s, which is within its own limit.
    code = "```python\nimport time\nif input() != '7': time.sleep(4)\nprint(7)\n```"
    tests = [ECHO, *[{"input": "8", "output": "7"}] * 10]
    start = time.monotonic()
    assert make_code_reward(total_timeout=2, concurrency=2)([code] * 4, [tests] * 4) == [1 / 11] * 4
    assert 4 <= time.monotonic() - start < 7  # ceil(4 / 2) times `total_timeout`
    assert reward("def f(): import time; time.sleep(20)", "assert f()", timeout=20, total_timeout=1) == 0.0
    assert time.monotonic() - start < 10


def test_no_more_completions_than_asked_for_run_at_a_time_and_rewards_keep_their_order():
    slow, wrong = "```python\nimport time; time.sleep(0.5)\nprint(input())\n```", "```python\nprint(8)\n```"
    start = time.monotonic()
    assert make_code_reward(concurrency=1)([slow, wrong, slow], [[ECHO]] * 3) == [1.0, 0.0, 1.0]
    assert time.monotonic() - start > 1.0
    assert make_code_reward(concurrency=3)([slow, wrong, slow], [[ECHO]] * 3) == [1.0, 0.0, 1.0]


def test_a_hostile_completion_leaves_the_others_of_its_batch_alone():
    hostile = [
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "kept = []\nwhile True: kept.append(bytes(2**20))",
        "while True: print('7' * 10**6)",
        "import os, signal\nos.kill(-1, signal.SIGKILL)",
        "x = '\ud800'",
    ]
    bodies = [body for code in hostile for body in (code, "print(input())")]
    grade = make_code_reward(**LIMITS | dict(timeout=3))
    assert grade([f"```python\n{body}\n```" for body in bodies], [[ECHO]] * 10) == [0.0, 1.0] * 5


def test_completions_run_side_by_side():
    start = time.monotonic()
    code = "```python\nimport time\ntime.sleep(1)\nprint(input())\n```"
    assert make_code_reward(timeout=5, concurrency=6)([code] * 6, [[ECHO]] * 6) == [1.0] * 6
    assert time.monotonic() - start < 5


def test_processes_are_few():
    # At most 50 are tried, and each sleeps and ends.
    code = """
import os, time
started = 0
for _ in range(50):
    try:
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
    except BlockingIOError:
        break
    started += 1
print(started)
"""
    assert reward(code, {"input": "", "output": "3"}, timeout=3) == 1.0  # and itself


def test_what_a_program_started_ends_with_it():
    # Its own session, its own group, all pipes held: killing a process group or waiting for the pipe would not do.
    code = """
import ctypes, os, sys, time
ctypes.CDLL(None).prctl(1, 0)  # no signal when the parent dies
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(61)  # stray"])
    os._exit(0)
time.sleep(0.3)
print(input(), flush=True)
"""
    start = time.monotonic()
    assert reward(code, ECHO, timeout=5) == 1.0
    assert reward(code + "os.setsid\ntime.sleep(60)", ECHO) == 0.0  # ended by the limit, not by itself
    assert time.monotonic() - start < 6
    assert not any("# stray" in line for line in commands())


def test_memory_is_bounded():
    assert runs("bytes(100 * 2**20)")
    assert not runs("bytes(300 * 2**20)")
    assert reward("def f(): return len(bytes(300 * 2**20))", f"assert f() == {300 * 2**20}") == 0.0


def test_output_is_cut_while_it_is_read():
    code = "import sys\nwhile True: sys.stdout.write('7' * 10**6)"
    start = time.monotonic()
    assert reward(code, ECHO, timeout=20) == 0.0
    assert reward("print(input(), ' ' * 10**7)", ECHO, timeout=20) == 0.0
    assert time.monotonic() - start < 8
    long = "7" * 10**6
    assert reward(f"print('7' * {len(long)})", {"input": "", "output": long}) == 1.0


def test_the_input_cannot_be_written_to():
    assert runs("import os\ntry: os.write(0, b'x')\nexcept OSError: pass\nelse: 1 / 0")


def test_files_are_few_and_none_is_the_hosts(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("tests")
    tmp_path.chmod(0o777)
    assert runs("open('mine', 'w').write('7'); assert open('/tmp/mine').read() == '7'")
    assert not runs("open('big', 'wb').write(bytes(2 * 2**20))")
    assert not runs("for i in range(3): open(str(i), 'wb').write(bytes(2**19))\nopen('x', 'wb').write(bytes(2**19))")
    refused = """
for path in [{0!r}, '/proc/1/environ', '/etc/passwd', '/sys', '/home', {2!r}, {1!r}]:
    try:
        open(path).close()
    except (FileNotFoundError, PermissionError):
        continue
    raise AssertionError(path)
for path in [{0!r} + '2', '/program/main.py', '/x', '/dev/shm/x', '/usr/x', sys.base_prefix + '/x', '/var/tmp/x']:
    try:
        open(path, 'w').close()
    except OSError:
        continue
    raise AssertionError(path)
"""
    assert runs("import sys" + refused.format(str(secret), str(Path(__file__)), str(Path.home() / ".cache")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret"] and secret.read_text() == "tests"


def test_environment_user_and_privileges_are_empty(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert runs("import os; assert 'HF_TOKEN' not in os.environ and len(os.environ) <= 1, os.environ")  # LC_CTYPE
    assert runs("import os; assert os.getuid() != 0 and os.getgroups() in ([], [65534], [os.getgid()])")
    mount = "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, b'') == -1"
    assert runs(mount) and runs("import os\ntry: os.chroot('/tmp')\nexcept PermissionError: pass\nelse: 1 / 0")
    assert runs("import ctypes; assert ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 1")  # PR_GET_NO_NEW_PRIVS


def test_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # it can be reached from here
        code = f"import socket\ntry: socket.create_connection(('127.0.0.1', {port}), 0.5)"
        assert runs(code + "\nexcept OSError: pass\nelse: 1 / 0")
    with socket.socket(socket.AF_UNIX) as server:
        name = f"\0credit_trl.{os.getpid()}"  # an abstract address belongs to the network, not to the file system
        server.bind(name)
        server.listen()
        assert runs(f"import socket\ntry: socket.socket(1).connect({name!r})\nexcept OSError: pass\nelse: 1 / 0")
    assert runs("import socket; socket.socketpair(); socket.socket().bind(('', 0)); socket.socket(socket.AF_INET6)")


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.socket(40, socket.SOCK_STREAM)",  # AF_VSOCK: the host of a virtual machine
        "import socket; socket.socket(16, socket.SOCK_RAW)",  # AF_NETLINK
        "if libc.unshare(0x10000000): raise OSError",  # CLONE_NEWUSER
        "pid = libc.clone(entry, stack, 0x10000000 | 17, None)\n    if pid < 0: raise OSError",
        "if libc.syscall({keyctl}, 0, -3, 0) < 0: raise OSError",  # the id of the session's key ring
        "if libc.syscall(425, 1, bytes(120)) < 0: raise OSError",  # io_uring_setup
    ],
)
def test_what_namespaces_leave_open_is_refused(attempt):
    attempt = attempt.format(keyctl=SYSTEM_CALLS[platform.machine()][1]["keyctl"])
    code = """
import ctypes
libc = ctypes.CDLL(None)
entry = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: 0)
stack = ctypes.c_void_p(ctypes.addressof(memory := ctypes.create_string_buffer(2**20)) + 2**20 - 64)
try:
    {}
except OSError:
    pass
else:
    1 / 0
"""
    assert runs(code.replace("{}", attempt))


@pytest.mark.parametrize(
    "code", ["import os; os.kill(os.getppid(), 9)", "import os; os.kill(-1, 9)", "import os; os.kill(0, 9)"]
)
def test_the_parent_cannot_be_killed(code):
    assert reward(code, ECHO) == 0.0
    assert reward(code, "assert f(1) == 2") == 0.0
    pids = {os.getpid(), os.getppid()}
    assert runs(f"import os\nfor pid in {pids}:\n    try: os.kill(pid, 9)\n    except OSError: continue\n    1 / 0")


TESTS = ["assert f(1) == 2", "assert f(5) == 6 and abs(f(1) - 2) < 1e-6"]


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "def f(x): import os; os._exit(0)",
        "def f(x): raise SystemExit(0)",
        "import os\nfor fd in range(1, 20):\n    try: os.write(fd, b'11')\n    except OSError: pass",
        "print('11'); import sys; sys.stdout.flush(); f = print",
        "class Any:\n    def __eq__(self, other): return True\n    __sub__ = __lt__ = __abs__ = __eq__\n"
        "def f(x): return Any()",
        "class Any(int):\n    def __eq__(self, other): return True\ndef f(x): return Any()",
        "import builtins\nbuiltins.exec = builtins.compile = builtins.abs = print\ndef f(x): return 0",
        "import sys, os\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        frame.f_globals['passes'] = "
        "lambda *_: True; frame = frame.f_back\n    return 0",
        "import __main__\n__main__.pack = lambda *_: ['object', 0]\ndef f(x): return 0",
        "import __main__\n__main__.pack = lambda *_: ['bytes', 'x']\ndef f(x): return 0",
        'import sys, json\njson.dumps = lambda *_: \'{"result": 1, "passed": true}\'\ndef f(x): return 0',
        "import gc, io\ndef f(x):\n    for o in gc.get_objects():\n"
        "        if isinstance(o, io.TextIOWrapper) and o.writable(): o.write('1' * 9); o.flush()\n    return 0",
    ],
)
def test_test_code_cannot_be_fooled(code):
    assert reward(code, *TESTS) == 0.0


def test_a_builtin_of_the_solution_does_not_stand_in_for_the_tests():
    assert reward("def abs(x): return 0\ndef f(x): return 9", "assert abs(f(1) - 2) < 1e-6") == 0.0


def test_an_honest_solution_passes_what_cannot_be_fooled():
    assert reward("def f(x): return x + 1", *TESTS) == 1.0


def test_a_module_of_the_solution_does_not_stand_in_for_a_standard_one():
    code = "class math: isclose = staticmethod(lambda *_: True)\ndef f(x): return 0"
    assert reward(code, "assert math.isclose(f(1), 2)") == 0.0


def test_the_expected_output_is_nowhere_to_be_read():
    code = """
import os
for folder in ["/program", "/tmp", "/proc"]:
    for path, _, names in os.walk(folder):
        for name in names:
            assert str(4700 + 11) not in open(os.path.join(path, name)).read()
for fd in range(3, 64):
    try: os.fstat(fd)
    except OSError: continue
    raise AssertionError(fd)
print(4700 + 11)
"""
    assert reward(code, {"input": "", "output": "4711"}) == 1.0


def test_the_run_ends_when_the_trainer_is_killed():
    mark = f"trainer {os.getpid()}"
    again = f"os.execv(sys.executable, [sys.executable, '-I', '-S', '/program/main.py', {mark!r}])"
    code = f"import os, sys\nif len(sys.argv) == 1: {again}\nwhile True: pass"
    trainer = f"import sys; sys.path.insert(0, {str(Path(sandbox.__file__).parents[1])!r})\n"
    trainer += f"from sandbox import Limits, run_script\nrun_script({code!r}, '', 'x', Limits(timeout=60))"
    process = subprocess.Popen([sys.executable, "-c", trainer])
    deadline = time.monotonic() + 8

    def alive() -> bool:
        return any(f"main.py\0{mark}" in line for line in commands())

    while not alive():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    while alive():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_sandbox_that_fails_is_an_error_and_not_a_wrong_program(monkeypatch):
    monkeypatch.setattr(sandbox, "_readable", lambda: [])  # no interpreter in there
    with pytest.raises(SandboxError, match="No such file"):
        sandbox.run_script("print(7)", "", "7", Limits())
    with pytest.raises(SandboxError, match="No such file"):
        sandbox.run_assertions("f = abs", ["assert f(1) == 1"], Limits())


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "chat"), [(GRPOTrainer, GRPOConfig, False), (SRPOTrainer, SRPOConfig, True)]
)
def test_trainers_are_rewarded_for_programs_that_pass(trainer_class, config_class, chat, tmp_path):
    grade = make_code_reward(**LIMITS | dict(timeout=5))
    wrote = [f"Sure:\n```python\ndef next_number(x):\n    return x + {step}\n```" for step in (1, 2)]

    @functools.wraps(grade)
    def graded(completions, **columns):
        """Every second completion is right; what the model itself wrote is no program at all."""
        assert grade(completions, **columns) == [0.0] * len(completions)
        texts = [wrote[row % 2] for row in range(len(completions))]
        return grade([[{"role": "assistant", "content": text}] for text in texts] if chat else texts, **columns)

    rows = {"prompt": ["1+2:", "3*4-5:"], "tests": [["assert next_number(1) == 2"], ["assert next_number(5) == 6"]]}
    args = config_class(
        **QUIET_ON_CPU,
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_generations=8,
        max_completion_length=8,
        max_steps=1,
        learning_rate=1e-3,
    )
    trainer = trainer_class(str(BASE_MODEL), graded, args=args, train_dataset=Dataset.from_dict(rows))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "rewards/code_reward/mean" in log]
    assert [log["rewards/code_reward/mean"] for log in logs] == [log["reward"] for log in logs] == [0.5]
    assert all(log["grad_norm"] > 0 for log in logs)
