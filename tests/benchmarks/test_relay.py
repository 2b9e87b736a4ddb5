"""Workers that take turns: who works when, what their figures are, and what is left when one of them fails."""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.common import relay as module
from benchmarks.common.relay import LAST_LINES, Turns, WorkerError, relay
from tests.helpers.launching import ROOT

# A worker without a trainer: it notes when it works, and who works at the same time.
WORKER = """
import os, sys, time
from multiprocessing.connection import Connection
from pathlib import Path
name, steps, fault = sys.argv[1], int(sys.argv[2]), sys.argv[3]
folder, connection = Path(sys.argv[4]), Connection(int(sys.argv[-1]))
(folder / f"{name}.pid").write_text(str(os.getpid()))
(folder / f"{name}.port").write_text(os.environ["MASTER_PORT"])
for line in range(100):
    print("line", line, flush=True)
if fault == "late":
    time.sleep(60)
connection.send(None)
for step in range(steps):
    connection.recv()
    working = folder / "working"
    working.touch(exist_ok=False)
    with (folder / "order").open("a") as order:
        order.write(name + "\\n")
    time.sleep(0.01)
    if step == 2 and fault == "dies":
        raise MemoryError("the GPU is full")
    if step == 2 and fault == "hangs":
        time.sleep(60)
    working.unlink()
    connection.send({"seconds": float(step)})
"""


def commands(folder: Path, steps: int, **faults: str) -> dict[str, list[str]]:
    folder.mkdir(exist_ok=True)
    return {
        name: [sys.executable, "-c", WORKER, name, str(steps), faults.get(name, "none"), str(folder)] for name in "abc"
    }


def running(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.pid") if os.path.exists(f"/proc/{path.read_text()}")]


def test_one_works_at_a_time_in_an_order_that_rotates(tmp_path):
    figures = relay(commands(tmp_path, 5), 4, tmp_path / "logs", warmup=1)
    order = (tmp_path / "order").read_text().split()
    assert "".join(order) == "abcbcacababcbca"
    # Steps that overlap would have found the file "working", and died.
    assert figures == {name: [{"seconds": step} for step in (1.0, 2.0, 3.0, 4.0)] for name in "abc"}
    assert len({path.read_text() for path in tmp_path.glob("*.port")}) == 3
    assert not running(tmp_path)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("dies", "b ended early, with exit status 1. The end of its log:\nline 8"),
        ("hangs", "b said nothing for 1 s"),
        ("late", r"b was not ready in time \(not ready: b\)"),
    ],
)
def test_a_worker_that_fails_is_named_and_none_is_left(tmp_path, fault, what):
    with pytest.raises(WorkerError, match=what) as error:
        relay(commands(tmp_path, 5, b=fault), 5, tmp_path / "logs", start_seconds=5, step_seconds=1)
    last = "MemoryError: the GPU is full" if fault == "dies" else "line 99"
    assert str(error.value).splitlines()[-1] == last
    assert len(str(error.value).splitlines()) == LAST_LINES + 1
    assert not running(tmp_path)


def test_a_worker_that_cannot_start_leaves_none(tmp_path):
    made = commands(tmp_path, 5)
    made["c"] = [str(tmp_path / "missing")]
    with pytest.raises(FileNotFoundError):
        relay(made, 5, tmp_path / "logs")
    assert not running(tmp_path)


def test_workers_end_when_nobody_gives_them_turns(tmp_path):
    """The process that gives turns is killed, and cannot end its workers."""
    script = f"""
import sys
from pathlib import Path
from benchmarks.common import relay
relay.Worker.go = lambda self: open({str(tmp_path / "ready")!r}, "w").close()
relay.relay({commands(tmp_path, 5)!r}, 5, Path({str(tmp_path / "logs")!r}))
"""
    process = module.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        wait_until(lambda: (tmp_path / "ready").exists())
        assert len(running(tmp_path)) == 3
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not running(tmp_path))


def wait_until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_no_further_round_begins_when_the_time_is_up(tmp_path):
    begun = time.monotonic()
    figures = relay(commands(tmp_path, 1000), 1000, tmp_path / "logs", seconds=3)
    assert time.monotonic() - begun < 20
    assert 0 < len(figures["a"]) == len(figures["b"]) == len(figures["c"]) < 1000
    with pytest.raises(WorkerError, match="no round was made within 0 s"):
        relay(commands(tmp_path / "again", 9), 9, tmp_path / "logs", seconds=0)


def test_a_trainer_waits_and_reports_after_its_log():
    """Each step is measured from its turn on, and sent when the next one begins, when its log is there."""
    ours, theirs = module.Pipe()
    turns = Turns(os.dup(theirs.fileno()))
    state = SimpleNamespace()
    sent = []
    for _ in range(2):
        ours.send(None)
        turns.on_step_begin(None, state, None)
        sent.append(ours.recv())
        assert not ours.poll()
        time.sleep(0.05)
        turns.on_step_end(None, state, None)
        assert not ours.poll()
        time.sleep(0.2)  # a log, which does not count
    ours.send(None)
    turns.on_train_end(None, state, None)
    assert not theirs.poll()  # it has waited
    first, *others = [*sent, ours.recv()]
    assert first is None
    assert all(0.05 <= figures["seconds"] < 0.2 for figures in others)


def test_a_process_stays_on_one_core():
    """With the threads that it has, and those that it starts later."""
    code = """
import os, threading, time
from benchmarks.common.relay import stay_on
cores, end = [], threading.Event()
def look():
    end.wait()
    cores.append(len(os.sched_getaffinity(0)))
before = threading.Thread(target=look)
before.start()
stay_on(max(os.sched_getaffinity(0)))
after = threading.Thread(target=look)
after.start()
end.set()
before.join()
after.join()
assert cores == [1, 1]
"""
    assert module.Popen([sys.executable, "-c", code], cwd=ROOT).wait() == 0
