"""The processes that compare answers: they start when needed, are replaced when they die, and end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from credit_trl.rewards import equality, pool
from credit_trl.rewards.pool import Pool, compare

PAIR = (r"\pi + \pi", r"2\pi")
SLOW = ("x+1", r"\int \sin(\cos(x^{9})) e^{x^2} dx")  # longer in SymPy than anybody waited
# Loads the module by its path, as importing the package loads torch. No guard for `__main__`: a pool that imports the
# script again would never end.
SCRIPT = f"""
import importlib.util, multiprocessing, os, sys, threading, time
spec = importlib.util.spec_from_file_location("pool", {pool.__file__!r})
pool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pool)
PAIR = {PAIR!r}
def score():
    (told,) = pool.compare([PAIR])
    print("pid", pool._pool.processes[0].program.pid, told[0], flush=True)
    return told[0]
score()
"""


def run(rest: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SCRIPT + rest], stdout=subprocess.PIPE, text=True, **options)


def pids(text: str) -> list[int]:
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("pid") and line.endswith("True")]


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 20
    while running(pid):
        assert time.monotonic() < end, f"process {pid} still runs"
        time.sleep(0.1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("seconds", "level"), [(0.0, "WARNING"), (600.0, "INFO")])
def test_a_busy_machine_is_warned_of_and_a_hostile_answer_is_not(monkeypatch, caplog, seconds, level):
    monkeypatch.setattr(pool, "batch_seconds", lambda pairs: seconds)
    monkeypatch.setattr(pool, "SLOW_SECONDS", 0.4)
    with caplog.at_level("INFO", logger="credit_trl"):
        assert compare([PAIR if level == "WARNING" else SLOW]) == [None]
    (record,) = caplog.records
    assert record.levelname == level
    assert ("the machine is too busy to compare them in 0 seconds" in record.getMessage()) == (level == "WARNING")


@pytest.mark.thorough
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("rest", "scores"),
    [
        ("", 1),
        ("os.kill(os.getpid(), 9)", 1),
        ("raise SystemExit(3)", 1),
        ("os._exit(0)", 1),
        # a forked child, such as a data loader's, starts its own, and its parent's goes on
        ("pid = os.fork()\nscore()\nif pid: os.waitpid(pid, 0); score()", 4),
        # a child that a library forked, and that keeps the pipes open
        ("import ctypes\nif ctypes.CDLL(None).fork() == 0: os.close(1); time.sleep(40); os._exit(0)\n"
         "os.kill(os.getpid(), 9)", 1),
        # daemonic processes may not have children of multiprocessing
        ("p = multiprocessing.get_context('fork').Process(target=score, daemon=True); p.start(); p.join()", 2),
        ("t = threading.Thread(target=score); t.start(); t.join()", 2),
        # a long computation under way when the parent is killed
        (f"t = threading.Thread(target=pool.compare, args=[[{SLOW!r}]]); t.start(); time.sleep(0.5); "
         "os.kill(os.getpid(), 9)", 1),
    ],
    ids=["end", "killed", "exit", "os._exit", "fork", "fork in C", "daemon", "thread", "busy"],
)  # fmt: skip
def test_processes_end_with_their_parent(rest, scores):
    program = run(rest)
    text, _ = program.communicate(timeout=100)  # would hang if the exit did
    found = pids(text)
    assert len(found) == scores
    for pid in found:
        wait_until_gone(pid)


@pytest.mark.timeout(120)
def test_a_killed_process_is_replaced():
    one = Pool()
    try:
        assert one.compare([PAIR])[0][0] is True
        first = one.processes[0].program.pid
        os.kill(first, signal.SIGKILL)
        time.sleep(0.2)
        assert one.compare([PAIR])[0][0] is True
        assert one.processes[0].program.pid != first
        assert one.compare([PAIR])[0][0] is True  # and is kept
    finally:
        one.close()


@pytest.mark.timeout(120)
def test_results_keep_their_order_over_processes(monkeypatch):
    monkeypatch.setattr(pool, "_available_cores", lambda: 3)
    one = Pool()
    try:
        results = one.compare([(r"3\pi", rf"{number}\pi") for number in range(30)])
        assert [result[0] for result in results] == [number == 3 for number in range(30)]
        assert [result[2].partition(",")[0] for result in results[2:4]] == ["[2*pi", "[3*pi"]
        assert len(one.processes) == 3
    finally:
        one.close()


@pytest.mark.timeout(120)
def test_the_deadline_of_the_batch_ends_all(monkeypatch):
    monkeypatch.setattr(pool, "batch_seconds", lambda pairs: 1.0)
    monkeypatch.setattr(pool, "QUICK_SECONDS", 30.0)
    one = Pool()
    try:
        one.compare([])
        assert one.processes == []
        results = one.compare([SLOW] * 3)
        assert results == [None] * 3
        monkeypatch.setattr(pool, "batch_seconds", lambda pairs: 60.0)
        assert one.compare([PAIR])[0][0] is True
    finally:
        one.close()


def test_a_process_that_cannot_start_says_why(monkeypatch, tmp_path):
    program = tmp_path / "equality.py"
    program.write_text("raise SystemExit('no SymPy here')")
    monkeypatch.setattr(pool, "_PROGRAM", program)
    with pytest.raises(RuntimeError, match="no SymPy here"):
        Pool().compare([PAIR])


def test_memory_is_bounded():
    compare([PAIR])
    supervisors = [process.program.pid for process in pool._pool.processes]
    children = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in supervisors]
    workers = [worker for some in children for worker in some]  # a process without a comparison has forked none
    assert workers
    for worker in workers:
        limits = Path(f"/proc/{worker}/limits").read_text()
        assert f"Max address space         {equality.WORKER_MEMORY} " in limits
