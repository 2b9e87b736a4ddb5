"""Start processes that run beside each other on one machine, and leave none behind."""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def free_ports(number: int) -> list[int]:
    """Return so many different ports that nothing listens on."""
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:  # all are open at once, so that no port is given twice
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def launch(
    command: list[str],
    log: Path,
    port: int,
    descriptors: Sequence[int] = (),
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen:
    """Start `command` in a group of its own, with a port for its process group of PyTorch.

    What it prints goes to `log`; it inherits `descriptors`, and this process's environment beside `variables`.
    """
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | own | dict(variables or {}),
            pass_fds=descriptors,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops them
        )


def kill(process: subprocess.Popen) -> None:
    """End what `launch` started, and the processes that it has started itself."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def interrupt_on_signals() -> None:
    """Let SIGTERM and SIGHUP interrupt this process as Ctrl-C does: what it has started does not go on alone."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # which nohup sets
            signal.signal(number, signal.default_int_handler)
