"""Let trainers in processes of their own take turns step by step: one works, and the others wait.

`relay` starts a process for every contestant and, when all are ready, gives each a step a round, in an order that
rotates. The machine's state, which drifts over seconds, is then the same for the steps of a round. In its process a
trainer has the callback `Turns`, which waits at the beginning of a step until it is the trainer's turn.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from benchmarks.common.measuring import now
from benchmarks.common.processes import free_ports, kill, launch

Figures = dict[str, Any]
# Workers keep the memory that they free. By default glibc gives it back or not by where it happens to lie, and of two
# processes with the same work on a CPU, one can be a fifth slower.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
LAST_LINES = 20  # of a log, shown when its worker fails


class WorkerError(RuntimeError):
    """A worker died or did not answer in time."""


class Turns(TrainerCallback):
    """Wait at the beginning of a step until it is this trainer's turn, and measure the step from there to its end.

    A step's figures are sent when the next one begins, or training ends: what is logged in between is over then, and
    this process is idle when another one goes on. After training it waits to be ended.

    Args:
        descriptor: of the connection to `relay`, which gives it to the worker's command as `--relay`.
        one_core: train on one core of the CPU, the same for all workers. On a core of its own, each would keep that
            core's clock and neighbours.
    """

    def __init__(self, descriptor: int, one_core: bool = False):
        os.set_inheritable(descriptor, False)
        self.connection = Connection(descriptor)
        self.one_core = one_core
        self.step: Figures | None = None  # what the step before took, of which nothing has been sent yet

    def figures(self, args, state) -> Figures:
        """Return what is sent of the last step."""
        assert self.step is not None
        return self.step

    def on_train_begin(self, args, state, control, **kwargs):
        if self.one_core:  # only now: all workers have loaded their models side by side
            stay_on(max(os.sched_getaffinity(0)))

    def on_step_begin(self, args, state, control, **kwargs):
        self.connection.send(None if self.step is None else self.figures(args, state))
        self.connection.recv()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.begun = now(), time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.step = {"seconds": now() - self.begun[0], "cpu_seconds": time.process_time() - self.begun[1]}
        self.step["peak_bytes"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0

    def on_train_end(self, args, state, control, **kwargs):
        self.connection.send(self.figures(args, state))
        with suppress(EOFError):  # what comes after training would disturb the last turns of the others
            self.connection.recv()


def stay_on(core: int) -> None:
    """Let all threads of this process, and those that they start, run on one core."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread), {core})


@dataclass
class Worker:
    name: str
    process: Popen
    connection: Connection
    log: Path

    def receive(self, seconds: float) -> Figures | None:
        """Return what the worker sends within `seconds`. Raises `WorkerError` if it sends nothing, or has died."""
        try:
            if self.connection.poll(seconds):
                return self.connection.recv()
        except (EOFError, ConnectionResetError):
            with suppress(TimeoutExpired):
                self.process.wait(10)
            raise self.failure(f"ended early, with exit status {self.process.returncode}") from None
        raise self.failure(f"said nothing for {seconds:.0f} s")

    def go(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died, which `receive` finds
            self.connection.send(None)

    def failure(self, what: str) -> WorkerError:
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return WorkerError(f"{self.name} {what}. The end of its log:\n" + "\n".join(lines))


def relay(
    commands: dict[str, list[str]], rounds: int, folder: Path, *, warmup: int = 0, seconds: float | None = None,
    start_seconds: float = 300, step_seconds: float = 300,
) -> dict[str, list[Figures]]:  # fmt: skip
    """Return the figures of every step of every contestant, round by round, without those of the warm-up.

    Args:
        commands: contestant -> command of its worker, which gets a further option `--relay DESCRIPTOR` for `Turns`.
            It trains for `warmup + rounds` steps.
        rounds: rounds that count.
        folder: gets a log of every worker.
        warmup: rounds before those that count.
        seconds: time in all, after which no further round begins.
        start_seconds: time until all workers are ready.
        step_seconds: time for a step.

    No worker is left running. Raises `WorkerError`, with the name of a worker and the end of its log, if one dies or
    takes too long.
    """
    begun = time.monotonic()
    names = list(commands)
    figures: dict[str, list[Figures]] = {name: [] for name in names}
    with ExitStack() as stack, tqdm(total=(warmup + rounds) * len(names), desc="start") as progress:
        workers = _start(commands, folder, stack)
        _await_ready(list(workers.values()), begun + start_seconds)
        for number in range(warmup + rounds):
            if seconds is not None and time.monotonic() - begun > seconds:
                break
            first = number % len(names)
            for name in names[first:] + names[:first]:
                progress.set_description(name)
                workers[name].go()
                made = workers[name].receive(step_seconds)
                assert made is not None
                if number >= warmup:
                    figures[name].append(made)
                progress.update()
    if rounds and not figures[names[0]]:
        raise WorkerError(f"no round was made within {seconds:.0f} s")
    return figures


def _start(commands: dict[str, list[str]], folder: Path, stack: ExitStack) -> dict[str, Worker]:
    """Return the workers by name, which end when `stack` is left."""
    folder.mkdir(parents=True, exist_ok=True)
    workers = {}
    for (name, command), port in zip(commands.items(), free_ports(len(commands)), strict=True):
        ours, theirs = Pipe()
        stack.enter_context(closing(ours))
        log = folder / f"{name.replace(' ', '_')}.log"
        with closing(theirs):  # an end that only the worker holds is closed when it dies
            words = [*command, "--relay", str(theirs.fileno())]
            process = launch(words, log, port, [theirs.fileno()], KEEP_MEMORY)
        stack.callback(kill, process)
        workers[name] = Worker(name, process, ours, log)
    return workers


def _await_ready(workers: Sequence[Worker], until: float) -> None:
    waiting = {worker.connection: worker for worker in workers}
    while waiting:
        spoken = wait(list(waiting), max(0, until - time.monotonic()))
        for connection in spoken:
            waiting.pop(connection).receive(0)
        if not spoken:
            others = [worker.name for worker in waiting.values()]
            raise next(iter(waiting.values())).failure(f"was not ready in time (not ready: {', '.join(others)})")
