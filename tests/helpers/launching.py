"""Start a script on several processes, and end all of them when they do not finish."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

HELPERS = Path(__file__).parent  # scripts that tests start; they import from `tests` and `credit_trl`
ROOT = HELPERS.parents[1]
TIMEOUT = 480  # seconds; pytest's own is 600 and would leave the processes behind
PROCESSES = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "main_process_port": 0, "mixed_precision": "no"}

TWO_PROCESSES = PROCESSES | {
    "distributed_type": "MULTI_GPU",  # accelerate starts one process under MULTI_CPU
    "use_cpu": True,
    "num_processes": 2,
}


def launch(engine: dict | None, folder: Path, *command: str, variables: dict[str, str] | None = None) -> None:
    """Run `command` (a script and its arguments) under accelerate's configuration `engine`; None: without accelerate.

    Raises `AssertionError` with what was printed unless all processes end well and in time: a process that waits for
    another one that never comes does not end.
    """
    starter = [sys.executable]
    if engine is not None:
        (folder / "engine.yaml").write_text(yaml.safe_dump(engine))
        accelerate = str(Path(sys.executable).with_name("accelerate"))
        starter = [accelerate, "launch", "--config_file", str(folder / "engine.yaml")]
    environment = (
        os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)} | (variables or {})
    )
    log = folder / "output.txt"
    with log.open("w") as output:
        process = subprocess.Popen([*starter, *command], env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            status: int | None = process.wait(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            process.terminate()  # the launcher hands it on to its processes, which have sessions of their own
            process.wait()
    printed = log.read_text()[-6000:]
    assert status is not None, f"still running after {TIMEOUT} seconds:\n{printed}"
    assert status == 0, printed
