"""Processes that compare mathematical answers, with bounds on their time and memory.

The processes are programs of their own (`equality`), started with pipes: nothing is forked from a process that has
CUDA, vLLM or threads, no script is imported again, and daemonic processes may start them too. They start with the
first comparison that needs them, are kept for the next batch, and end with the process that started them, however it
ends.
"""

import atexit
import json
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

MOST_PROCESSES = 4  # for each process of the trainer
PAIRS_PER_PROCESS = 8  # a further process is started for so many more pairs
QUICK_SECONDS = 0.2  # CPU seconds for each pair at first; ordinary ones take 0.005 to 0.05
SLOW_SECONDS = 2.0  # CPU seconds of each process for all pairs together that need more
LONGEST_PAIR = 5.0  # CPU seconds of one pair, as `trl.rewards.accuracy_reward` bounds a comparison
START_SECONDS = 120.0  # for loading SymPy, on a machine that has other things to do
_PROGRAM = Path(__file__).with_name("equality.py")
# The program sees this process's import path and not its own folder, where modules have names of the standard library.
_BOOT = (
    "import sys; program, parent, *sys.path = sys.argv[1:]; sys.argv[1:] = [parent]; "
    "import runpy; runpy.run_path(program, run_name='__main__')"
)

Comparison = tuple[bool, str, str]  # whether the answers are equal, the gold as read, the answer as read


def batch_seconds(pairs: int) -> float:
    """Return how long comparing a number of different pairs may take, in wall-clock seconds: 10 and 0.05 for each."""
    return 10.0 + 0.05 * pairs


class _Process:
    """Hold one supervisor and the pair that it compares."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _BOOT, str(_PROGRAM), str(os.getpid()), *map(str, sys.path)]
        self.program = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # the program closes it once it is ready
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the trainer, which ends them
        )
        pipes = (self.program.stdin, self.program.stdout, self.program.stderr)
        self.requests, self.replies, self.errors = (pipe for pipe in pipes if pipe is not None)
        self.received = b""

    def wait_until_ready(self, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            ready = selector.select(max(0.0, deadline - time.monotonic()))
        if not ready or os.read(self.fileno(), 16) != b"ready\n":
            self.program.kill()
            said = self.errors.read().decode(errors="replace").strip()
            raise RuntimeError(f"the process that compares answers did not start. It said: {said[-1000:] or 'nothing'}")
        self.errors.close()

    def send(self, seconds: float, pair: tuple[str, str]) -> None:
        request = json.dumps([seconds, *pair]).encode() + b"\n"
        os.write(self.requests.fileno(), request)

    def receive(self) -> bytes | None:
        """Return the reply if it is complete by now, else `None`. Raises `EOFError` if the process has ended."""
        part = os.read(self.fileno(), 1 << 16)
        if not part:
            raise EOFError
        self.received += part
        if not self.received.endswith(b"\n"):
            return None
        line, self.received = self.received, b""
        return line

    def fileno(self) -> int:
        return self.replies.fileno()

    def kill(self) -> None:
        self.program.kill()
        self.program.wait()
        self.forget()

    def forget(self) -> None:
        """Close this end of the pipes: without another end that is open, the process ends."""
        for pipe in (self.requests, self.replies, self.errors):
            pipe.close()


class Pool:
    """Hold the processes of this process, started when they are first needed."""

    def __init__(self) -> None:
        self.processes: list[_Process] = []
        self.lock = threading.Lock()  # reward functions may be called in several threads

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[Comparison | None]:
        """Return for each (gold, answer) of `pairs` what `equality` says, or `None` where there was no time to tell.

        Every pair gets `QUICK_SECONDS`. Those that need more share `SLOW_SECONDS` and get twice as long at least, as
        far as these go. All of it ends after `batch_seconds`, and the pairs left over are `None`. Raises
        `RuntimeError` if a process cannot be started.
        """
        if not pairs:
            return []
        results: list[Comparison | None] = [None] * len(pairs)
        with self.lock:
            deadline = time.monotonic() + START_SECONDS
            try:
                self._start(min(MOST_PROCESSES, _available_cores(), 1 + len(pairs) // PAIRS_PER_PROCESS), deadline)
                deadline = time.monotonic() + batch_seconds(len(pairs))
                self._run(pairs, range(len(pairs)), results, QUICK_SECONDS, deadline)
                slow = [place for place, result in enumerate(results) if result is None]
                if slow:
                    budget = SLOW_SECONDS * len(self.processes)
                    share = min(LONGEST_PAIR, max(2 * QUICK_SECONDS, budget / len(slow)))
                    self._run(pairs, slow[: max(1, int(budget / share))], results, share, deadline)
            except BaseException:  # an interrupt leaves replies that nobody waits for
                self.close()
                raise
        unfinished = results.count(None)
        if unfinished:
            told = "%d of %d answers could not be compared in time and count as wrong"
            if time.monotonic() < deadline:
                logger.info(told, unfinished, len(pairs))
            else:
                busy = ", right ones among them perhaps: the machine is too busy to compare them in %.0f seconds"
                logger.warning(told + busy, unfinished, len(pairs), batch_seconds(len(pairs)))
        return results

    def close(self) -> None:
        """End all processes; the next comparison starts new ones."""
        processes, self.processes = self.processes, []
        for process in processes:
            process.kill()

    def _start(self, wanted: int, deadline: float) -> None:
        started = [_Process() for _ in range(wanted - len(self.processes))]
        self.processes += started
        for process in started:
            process.wait_until_ready(deadline)

    def _run(
        self,
        pairs: Sequence[tuple[str, str]],
        places: Sequence[int],
        results: list[Comparison | None],
        seconds: float,
        until: float,
    ) -> None:
        """Compare the pairs at `places`, each in `seconds` of CPU time, and write what is told before `until`."""
        waiting, idle = deque(places), list(self.processes)
        busy: dict[_Process, int] = {}  # process -> the place of the pair that it compares
        with selectors.DefaultSelector() as selector:
            while waiting or busy:
                while waiting and idle:
                    process, place = idle.pop(), waiting.popleft()
                    try:
                        process.send(seconds, pairs[place])
                    except BrokenPipeError:  # something else ended it, as the kernel does when memory runs out
                        waiting.appendleft(place)
                        idle.append(self._replace(process))
                        continue
                    busy[process] = place
                    selector.register(process, selectors.EVENT_READ, process)
                ready = selector.select(max(0.0, until - time.monotonic()))
                if not ready and time.monotonic() >= until:
                    for process in busy:
                        selector.unregister(process)
                        process.kill()
                        self.processes.remove(process)
                    return
                for key, _ in ready:
                    process = key.data
                    try:
                        reply = process.receive()
                    except EOFError:
                        selector.unregister(process)
                        del busy[process]
                        idle.append(self._replace(process))
                        continue
                    if reply is not None:
                        selector.unregister(process)
                        told = json.loads(reply)
                        results[busy.pop(process)] = told and tuple(told)
                        idle.append(process)

    def _replace(self, process: _Process) -> _Process:
        process.kill()
        self.processes.remove(process)
        self._start(len(self.processes) + 1, time.monotonic() + START_SECONDS)
        return self.processes[-1]


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_pool = Pool()
_inherited: list[Pool] = []  # of the process that this one was forked from: not to be used, and not this one's to end


def compare(pairs: Sequence[tuple[str, str]]) -> list[Comparison | None]:
    """Compare (gold, answer) pairs in the processes of this process; see `Pool.compare`."""
    return _pool.compare(pairs)


def _after_fork() -> None:
    global _pool
    for process in _pool.processes:
        process.forget()
    _inherited.append(_pool)
    _pool = Pool()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _pool.close())
