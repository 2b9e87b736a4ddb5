"""Run untrusted Python against tests, outside the trainer's process and apart from the host's files and network.

What it protects against, and what not, is in `docs/guides/rewards.md`. Linux only, with user namespaces; there is
no weaker mode.
"""

import functools
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from .rules import PRELUDE, SAME, prints_the_same

# As `python program.py` would run it, but with `exit` and `quit`, which are not there under -S. Whatever it exits with
# is well, as in LiveCodeBench's `call_method`.
_SCRIPT = """
import site
site.setquit()
del site
try:
    exec(compile(open("/program/prelude.py", "rb").read(), "/program/prelude.py", "exec"))
    exec(compile(open("/program/code.py", "rb").read(), "/program/code.py", "exec"))
except SystemExit:
    pass
"""
_LAUNCHER = Path(__file__).with_name("launcher.py")
_REMOTE = Path(__file__).with_name("remote.py")
_SLACK_BYTES = 65536  # how much longer than the expected output (spaces, empty lines) an output may be
_PYTHON = os.path.realpath(sys.executable)


class SandboxError(RuntimeError):
    """Report that the sandbox cannot be set up, which says nothing about the code that was to run in it."""


@dataclass(frozen=True)
class Limits:
    """Bound what one program may use.

    `timeout` is in seconds of wall-clock time (its default is LiveCodeBench's) and bounds the CPU time of each process
    too; `total_timeout` bounds the wall-clock time of all tests of a program. `memory_mb` is
    the address space of each process, `processes` their number with threads counted, `files_mb` the size of all files
    together.
    """

    timeout: float = 6.0
    total_timeout: float = 60.0
    memory_mb: int = 1024
    processes: int = 4
    files_mb: int = 16

    def __post_init__(self) -> None:
        for name, least in (("timeout", 0), ("total_timeout", 0), ("memory_mb", 64), ("processes", 1), ("files_mb", 1)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least and value > 0):
                raise ValueError(f"{name}={value!r} must be a finite number, above 0 and at least {least}")


def _readable() -> list[str]:
    """Return the folders of the host that a Python program needs: the interpreter and the shared libraries."""
    paths = ["/usr", *(f"/{name}" for name in sorted(os.listdir("/")) if name.startswith("lib"))]
    return paths if sys.base_prefix.startswith("/usr") else [*paths, sys.base_prefix]


def _start(
    files: dict[str, str],
    limits: Limits,
    arguments: Sequence[str],
    root: str,
    stdin: int | IO[Any] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    stdout: int = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """Start `/program/main.py` of `files` in a sandbox that is mounted on the folder `root`."""
    megabyte = 2**20
    config = {
        "root": root,
        "readable": _readable(),
        "files": files,
        "file_bytes": limits.files_mb * megabyte,
        "timeout": limits.timeout,
        "command": [_PYTHON, "-I", "-S", "/program/main.py", *arguments],
        "limits": {
            "RLIMIT_CPU": math.ceil(limits.timeout),
            "RLIMIT_AS": limits.memory_mb * megabyte,
            "RLIMIT_FSIZE": limits.files_mb * megabyte,
            "RLIMIT_NPROC": limits.processes + (os.geteuid() != 0),  # for a user, the launcher counts too
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        },
    }
    with tempfile.TemporaryFile("w+") as file:
        json.dump(config, file)
        file.seek(0)
        return subprocess.Popen(  # a fixed command; what is untrusted goes by file  # nosec B603
            [_PYTHON, "-I", "-S", str(_LAUNCHER), str(file.fileno())],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={},
            start_new_session=True,  # Ctrl-C ends the trainer, and that ends the launcher
            pass_fds=[file.fileno(), *pass_fds],
        )


def _finish(process: subprocess.Popen[bytes], most_bytes: int = 0) -> tuple[bytes, int]:
    """Read at most `most_bytes` of the standard output, end the process, and return what was read and its exit code.

    No deadline is needed: the launcher keeps the time limit, and after it nothing holds the pipe.
    """
    output = b""
    assert process.stderr is not None
    with process.stderr as errors:
        if process.stdout is not None:
            with process.stdout as stream:
                output = stream.read(most_bytes)
        if process.stdout is None or len(output) == most_bytes:
            process.terminate()
        message = errors.read().decode()
    if process.wait() == 2:
        raise SandboxError(message.strip())
    return output, process.returncode


def run_script(code: str, stdin: str, expected: str, limits: Limits) -> bool:
    """Return whether the script `code` ends well and prints `expected`.

    The outputs are compared by `rules.prints_the_same`.
    """
    files = {"main.py": _SCRIPT, "prelude.py": PRELUDE, "code.py": code}
    most_bytes = 2 * len(expected.encode(errors="surrogatepass")) + _SLACK_BYTES
    with tempfile.TemporaryDirectory() as root:
        path = Path(root, "stdin")  # the sandbox's root hides it
        path.write_bytes(stdin.encode(errors="surrogatepass"))
        with path.open("rb") as file:  # read-only: a file of the host must not be written to
            output, status = _finish(_start(files, limits, (), root, file), most_bytes)
    return status == 0 and len(output) < most_bytes and prints_the_same(output.decode(errors="replace"), expected)


def run_assertions(code: str, tests: Sequence[str], limits: Limits) -> list[bool]:
    """Return which of `tests`, pieces of test code such as `assert f(1) == 2`, run to their end when they call `code`.

    All of them share one process of `code` and the time limit; those that it does not reach have failed.
    """
    ours, theirs = socket.socketpair()
    remote = _REMOTE.read_text()
    # Other test code than LiveCodeBench's is run by graders that import nothing for the program.
    prelude = PRELUDE if any(SAME in test for test in tests) else ""
    with ours, theirs, tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        worker = _start(
            {"main.py": remote, "prelude.py": prelude, "code.py": code},
            limits,
            ["worker", str(theirs.fileno())],
            one,
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,
        )
        judge = _start(
            {"main.py": remote, "tests.json": json.dumps(list(tests))},
            limits,
            ["judge", str(ours.fileno())],
            other,
            pass_fds=[ours.fileno()],
        )
        ours.close()  # a side that ends must be seen to have ended by the other
        theirs.close()
        try:
            verdicts, _ = _finish(judge, len(tests) + 1)
        finally:
            _finish(worker)
    passed = [verdict == ord("1") for verdict in verdicts]
    return passed + [False] * (len(tests) - len(passed))


@functools.cache
def check_sandbox() -> None:
    """Raise `ValueError` where the sandbox cannot be set up here, which it says once and for all."""
    if sys.platform != "linux":
        raise ValueError("the code reward needs Linux, whose namespaces keep the model's code apart")
    try:
        works = run_script("print(1)", "", "1", Limits(timeout=60))
    except SandboxError as error:
        raise ValueError(
            f"the code reward cannot isolate the model's code here ({error}), and does not run it otherwise. It needs "
            "Linux 5.12 on x86_64 or aarch64, with seccomp and user namespaces: see the sysctls "
            "user.max_user_namespaces, kernel.unprivileged_userns_clone and "
            "kernel.apparmor_restrict_unprivileged_userns; under Docker, add --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined --cap-add SYS_ADMIN"
        ) from error
    if not works:
        raise ValueError(
            f"the code reward cannot start {_PYTHON} with only {', '.join(_readable())} of the file system: use a "
            "Python that keeps its libraries there"
        )


def run_tests(
    code: str, tests: Iterable[str | tuple[str, str]], limits: Limits, stop_early: bool = False
) -> list[bool]:
    """Return which of `tests` the code passes: pieces of test code, or pairs of standard input and expected output.

    With `stop_early`, scripts are not run any more after the first failure and count as failed. So do those that
    `limits.total_timeout` leaves no time for.
    """
    tests = list(tests)
    check_sandbox()
    deadline = time.monotonic() + limits.total_timeout
    assertions = [test for test in tests if isinstance(test, str)]
    passed = []
    if assertions:
        passed += run_assertions(code, assertions, replace(limits, timeout=min(limits.timeout, limits.total_timeout)))
    for test in tests:
        if not isinstance(test, str):
            left = deadline - time.monotonic()
            runs = left > 0 and not (stop_early and not all(passed))
            passed.append(runs and run_script(code, *test, replace(limits, timeout=min(limits.timeout, left))))
    return passed
