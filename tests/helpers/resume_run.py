"""Train, be killed by SIGKILL at random moments and in the middle of writing, resume, and compare with no stop at all.

    python tests/helpers/resume_run.py METHOD MODEL FOLDER PROCESSES KILLS

Every part of a run has processes of its own, which are forked from this one: it has imported everything and computes
nothing. `test_resume.py` uses the same trainers in its own process.
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import deque
from pathlib import Path

import numpy
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from credit_trl import GRPOLambdaConfig, GRPOLambdaTrainer, SRPOConfig, SRPOTrainer, STraceConfig, STraceTrainer
from credit_trl.base.resume import STAGING
from credit_trl.testbed import BASE_MODEL, LOCALIZATION_TEMPLATE, make_dataset
from tests.helpers.comparing import TIMES
from tests.helpers.training import QUIET_ON_CPU, digit_reward

BASE = str(BASE_MODEL)
METHODS = {
    "grpo": (GRPOTrainer, GRPOConfig, {}),
    "s_trace": (STraceTrainer, STraceConfig, {}),
    "grpo_lambda": (GRPOLambdaTrainer, GRPOLambdaConfig, {}),
    "eps_weight": (GRPOLambdaTrainer, GRPOLambdaConfig, dict(trace_target="advantage")),
    "srpo": (
        SRPOTrainer,
        SRPOConfig,
        dict(localizer="self", localization_template=LOCALIZATION_TEMPLATE, localization_max_tokens=4),
    ),
    "rrpo": (SRPOTrainer, SRPOConfig, dict(localizer="random", seed_source="fresh", max_seed_attempts=2)),
}


class KilledError(Exception):
    """End a run in place of a signal, where no process has to die: what the trainer held is thrown away with it."""


class KillAfterSaving(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        if state.global_step < state.max_steps:
            raise KilledError


def noisy_reward(completions, log_extra, log_metric, **kwargs):
    """Draw from the generators of Python and NumPy, and log what ends in the table and in the metrics."""
    noise = [random.random() + float(numpy.random.random()) for _ in completions]
    log_extra("noise", noise)
    log_metric("noise", sum(noise))
    return [right + extra / 10 for right, extra in zip(digit_reward(completions), noise, strict=True)]


def make(method, model, folder, *, callbacks=(), lora=False, **options):
    """Make a trainer. `method`: a name in `METHODS`, or a trainer's class, its config's class and fields of that."""
    trainer_class, config_class, fields = METHODS[method] if isinstance(method, str) else method
    resets = config_class is SRPOConfig
    settings = QUIET_ON_CPU | dict(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_generations=8 if resets else 4,
        max_completion_length=40 if resets else 10,
        num_iterations=2,
        learning_rate=5e-3 if model != BASE else 1e-4,
        save_strategy="steps",
        save_steps=1,
        logging_steps=2,
    )
    data = Dataset.from_dict({"prompt": ["1+2:", "3*4-5:", "16-0+7:", "9*9:"]})
    if resets:
        data = make_dataset(4, min_steps=2, max_steps=4, seed=3)
    torch.manual_seed(0)  # of LoRA's first weights
    return trainer_class(
        model,
        noisy_reward,
        args=config_class(**(settings | fields | options)),
        train_dataset=data,
        eval_dataset=data.select(range(2)),
        peft_config=LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1) if lora else None,
        callbacks=list(callbacks),
    )


def train(method, model, folder, resume=None, **options):
    trainer = make(method, model, folder, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


# --- all that two runs can differ in ---

# Clocks, what is set before it is read, and the Trainer's record of its control, which the main process's replaces.
OF_A_PART = {
    *("_start_time", "_earlier_seconds", "_current_train_step_time", "_initial_num_input_tokens_seen"),
    *("_staging", "_between_steps", "_mixed_mesh_grads", "rollout_func", "stateful_callbacks"),
}


def plain(value) -> bool:
    """Return whether numbers, text and tensors are all that `value` is made of."""
    if isinstance(value, dict):
        return all(map(plain, value.values()))
    if isinstance(value, list | tuple | set | deque):
        return all(map(plain, value))
    return isinstance(value, str | int | float | torch.Tensor | numpy.ndarray | None)


def timeless(value):
    """Return `value` as JSON holds it, without what depends on the clock."""
    if isinstance(value, dict):
        timed = (*TIMES, "seconds")
        return {str(key): timeless(item) for key, item in value.items() if not any(word in str(key) for word in timed)}
    if isinstance(value, torch.Tensor | numpy.ndarray):
        return [str(value.dtype), value.tolist()]
    return list(map(timeless, value)) if isinstance(value, list | tuple | set | deque) else value


def state_of(trainer) -> dict[str, str]:
    """Every plain attribute of the trainer and of its state, weights, optimizer, schedule and random states."""
    if not trainer.accelerator.is_main_process:
        trainer._logs = None  # for the main process's table
    held = {name: value for name, value in vars(trainer).items() if name not in OF_A_PART and plain(value)}
    model = trainer.accelerator.unwrap_model(trainer.model)
    held |= dict(
        weights=dict(model.state_dict()),
        optimizer=trainer.optimizer.state_dict(),
        schedule=trainer.lr_scheduler.state_dict(),
        random=[random.getstate(), numpy.random.get_state()[1:], torch.get_rng_state()],
        state={name: value for name, value in vars(trainer.state).items() if name not in OF_A_PART and plain(value)},
    )
    return {name: json.dumps(timeless(value), sort_keys=True) for name, value in held.items()}


# --- processes that end by a signal ---

STEPS = 6
OPTIONS = dict(max_steps=STEPS, num_iterations=4, save_total_limit=2, logging_steps=4)


def die_at(event: int) -> None:
    """Send this process SIGKILL at the `event`-th call that opens, makes, renames or removes a part of a checkpoint."""
    seen = 0

    def count(name, arguments):
        nonlocal seen
        if name.startswith(("open", "os.", "shutil.")) and "checkpoint-" in str(arguments[:1]):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def part_of_a_run(method: str, model: str, folder: Path, process: int, event: int | None) -> None:
    """Train in this process until the run is finished, or until it is killed."""
    torch.set_num_threads(1)
    if event is not None:
        die_at(event)
    started = folder.is_dir() and get_last_checkpoint(folder) is not None
    trainer = train(method, model, folder, resume=started, **OPTIONS)
    (folder / f"state_{process}.json").write_text(json.dumps(state_of(trainer)))


def fork(processes: int, port: int, *arguments, event: tuple[int, int] | None = None) -> list[int]:
    """Start all processes of a part of a run and return their ids. `event`: a process, and when it kills itself."""
    ids = []
    for process in range(processes):
        child = os.fork()
        if child:
            ids.append(child)
            continue
        status = 1
        try:
            if processes > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
                os.environ |= {"RANK": str(process), "LOCAL_RANK": str(process), "LOCAL_WORLD_SIZE": str(processes)}
            part_of_a_run(*arguments, process, event[1] if event and event[0] == process else None)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # the parent's exit handlers are not this process's
    return ids


def wait(ids: list[int], seconds: float) -> bool:
    """Wait until all processes have ended, or one has been killed, or the time is over; kill those that are left.

    Returns whether all of them finished. Raises `RuntimeError` where one failed and none had been killed.
    """
    end, left, codes = time.monotonic() + seconds, set(ids), []
    while left and not any(codes) and time.monotonic() < end:
        time.sleep(0.01)
        codes += reap(left)
    if any(codes):
        time.sleep(0.2)  # a process that loses its partner may fail sooner than the partner's end is seen
        codes += reap(left)
    if any(codes) and -signal.SIGKILL not in codes:
        raise RuntimeError("a process failed; its error is above")
    for process in left:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return not left and not any(codes)


def reap(left: set[int]) -> list[int]:
    """Take the processes that have ended out of `left`, and return their exit codes, a signal's being negative."""
    codes = []
    for process in list(left):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            left.remove(process)
            codes.append(os.waitstatus_to_exitcode(status))
    return codes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main() -> None:
    method, model, folder, processes, kills = sys.argv[1], sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:])
    start = time.monotonic()
    assert wait(fork(processes, free_port(), method, model, folder / "whole"), 300)
    duration = time.monotonic() - start
    dice = random.Random(0)
    report: dict = {"kills": 0, "while writing": 0, "runs": []}
    while report["kills"] < kills or not report["runs"]:
        run = folder / f"run {len(report['runs'])}"
        parts, finished = 0, False
        while not finished:
            seconds, event = 300.0, None
            if report["kills"] < kills:
                if (report["kills"] + parts) % 2:
                    seconds = dice.uniform(0.1, 0.8) * duration
                else:
                    process = dice.randrange(processes)
                    event = process, dice.randrange(1, 100 if process == 0 else 10)  # the first one writes most files
            finished = wait(fork(processes, free_port(), method, model, run, event=event), seconds)
            parts += 1
            if not finished:
                report["kills"] += 1
                report["while writing"] += (run / STAGING).is_dir()
        differs = set()
        for process in range(processes):
            states = [json.loads((path / f"state_{process}.json").read_text()) for path in (folder / "whole", run)]
            differs |= {name for name in states[0].keys() & states[1].keys() if states[0][name] != states[1][name]}
        report["runs"].append({"parts": parts, "differs in": sorted(differs)})
        shutil.rmtree(run)
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
