"""Write checkpoints from which a run goes on as if it had not stopped, and which are whole or not there.

TRL's checkpoints lack what is in flight between two steps: the buffered completions, their place in the generation
cycle, and the metrics and losses of the logging window. It is written next to them (`resume_state.py`) and put back
before the first step. Random states are in the Trainer's own files.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.logging import get_logger
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from . import resume_state
from .trainer import CreditTrainer

logger = get_logger(__name__)

# Neither `get_last_checkpoint` nor the rotation of checkpoints looks at this name, and uploads leave it out.
STAGING = "_incomplete"

# Under `enable_jit_checkpoint`, transformers makes the final folder with this file before it asks for a checkpoint.
PLACEHOLDER = "checkpoint-is-incomplete.txt"

# What TRL's trainer and the Trainer hold between two steps, without `_last_loaded_step`: a new vLLM engine has to be
# given the weights, whatever the step.
IN_FLIGHT = (
    "_step",
    "_buffered_inputs",
    "_tr_loss",
    "_total_loss_scalar",
    "_globalstep_last_logged",
    "_initial_global_step",
)

# The settings of TRL that buffered completions depend on.
FIELDS_OF_THE_BUFFER = (
    "num_generations",
    "num_iterations",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "use_vllm",
    "vllm_importance_sampling_correction",
)


class ExactResumeMixin(CreditTrainer):
    """Make a trainer resume to the bit after any step: `class MyTrainer(ExactResumeMixin, CreditTrainer)`.

    It comes first among the base classes. A trainer without it resumes as TRL's does. A trainer that holds more than
    TRL between two steps names the attributes in `_in_flight`, and in `_fields_of_the_buffer` the settings of its own
    that buffered completions depend on.

    `train(resume_from_checkpoint=...)` raises `ValueError` for settings under which the buffered completions cannot be
    used any further, and for a checkpoint that lacks an attribute of `_in_flight`.
    """

    _resumed: dict[str, Any] | None = None  # state that was read and is not yet put back
    _staging: str | None = None  # folder into which a checkpoint is being written
    _between_steps = True
    _deferred = False  # whether a checkpoint was asked for within a step
    _train_sampler: Any = None  # sampler of data that can be indexed
    _start_time = 0.0  # clock at which this part of the run began
    _earlier_seconds = 0.0  # time of the parts before this one
    _initial_global_step = 0  # zero, as in versions of Transformers that divide the loss by all steps anyway

    # --- writing ---

    def _save_checkpoint(self, model, trial):
        run_folder, folder = self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        final = os.path.join(run_folder, folder)
        self._remove_placeholder(final)
        self._deferred = not self._between_steps
        if self._deferred:
            self.control.should_save = True  # asked for by a callback: the step is finished and logged first
            return
        with self._stage(run_folder) as staging:
            super()._save_checkpoint(model, trial)
            staged = os.path.join(staging, folder)
            if self.args.save_strategy != "no":
                self._find_best(run_folder, final)
                if self.args.should_save:
                    self.state.save_to_json(os.path.join(staged, "trainer_state.json"))
            if not self.args.save_only_model:
                resume_state.write(staged, self.args.process_index, self._state_in_flight())
        self._publish(staged, final)
        if self.args.push_to_hub:
            self._push_from_checkpoint(final)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=run_folder,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _find_best(self, run_folder: str, final: str | None = None) -> None:
        """Set the path of the best checkpoint, which the Trainer would not find in staging or in a moved folder.

        `final`: path of a checkpoint that is about to get its name.
        """
        best = os.path.join(run_folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
        if self.state.best_global_step and (best == final or os.path.isdir(best)):
            self.state.best_model_checkpoint = best

    def _remove_placeholder(self, final: str) -> None:
        """Remove a folder without a checkpoint in it, from which a run that is killed now would try to resume."""
        self.accelerator.wait_for_everyone()  # each process has made it, and will look for the file in it
        if self.is_local_process_zero() and os.path.isdir(final) and os.listdir(final) == [PLACEHOLDER]:
            shutil.rmtree(final)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _stage(self, run_folder: str) -> Iterator[str]:
        """Let checkpoints be written into a folder from which nobody resumes, and yield its path."""
        staging = os.path.join(run_folder, STAGING)
        if self.is_local_process_zero():
            shutil.rmtree(staging, ignore_errors=True)  # left by a run that was killed while it wrote
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            yield staging
        finally:
            self._staging = None

    def _publish(self, staged: str, final: str) -> None:
        """Give a complete checkpoint its name, once all processes have written their part."""
        self.accelerator.wait_for_everyone()
        # The nodes of a cluster share a disk, or each has its own with its own part.
        for turn in (self.is_world_process_zero(), self.is_local_process_zero()):
            if turn and os.path.isdir(staged):
                if os.path.isdir(final):  # an earlier run's: a folder that is not empty cannot be replaced
                    os.rename(final, f"{staged}-replaced")
                os.rename(staged, final)
                shutil.rmtree(os.path.dirname(staged))
            self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial):
        return super()._get_output_dir(trial) if self._staging is None else self._staging

    def _push_from_checkpoint(self, checkpoint_folder):
        if self._staging is None:  # an upload goes on in the background, when the folder has its final name
            super()._push_from_checkpoint(checkpoint_folder)

    def _state_in_flight(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in (*IN_FLIGHT, *self._in_flight)}
        seconds = self._earlier_seconds + time.time() - self._start_time
        state |= {"_metrics": self._metrics, "settings": self._settings(), "seconds": seconds}
        state["training"] = self.model.training  # by this TRL tells metrics of training from those of evaluation
        if self.accelerator.is_main_process:  # every process holds the whole table, and this one alone shows it
            state["_logs"] = self._logs
        return state

    def _settings(self) -> dict[str, Any]:
        fields = {name: getattr(self.args, name) for name in (*FIELDS_OF_THE_BUFFER, *self._fields_of_the_buffer)}
        others = {"trainer": self._name, "number of processes": self.args.world_size, "beta != 0": self.beta != 0}
        return others | fields

    # --- resuming ---

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._find_best(os.path.dirname(os.path.abspath(checkpoint)))
        resumed = resume_state.read(checkpoint, self.args.process_index, self.args.device)
        # A process that the earlier run did not have finds in the first one's state that there are now more of them.
        written = resumed or resume_state.read(checkpoint, 0)
        if written is not None:
            resume_state.check(written, checkpoint, self._settings(), (*IN_FLIGHT, *self._in_flight))
        if self.args.sync_ref_model:
            logger.warning(
                "Checkpoints do not hold the reference model that sync_ref_model=True keeps up to date: it starts "
                "again as it was before training, and the KL term is not what it would have been without a stop."
            )
        if resumed is None:
            logger.warning(
                f"{checkpoint} holds weights but not what was in flight: it was written with save_only_model=True or "
                "by another trainer. The run goes on with new completions, not exactly as if it had not stopped."
            )
        self._resumed = resumed

    def _run_epoch(self, *, epoch, start_time, resume_from_checkpoint, **keywords):  # type: ignore[override]
        self._start_time = start_time
        self._restore(epoch)
        if self.state.global_step >= self.state.max_steps:  # resumed when nothing was left to do
            self._load_rng_state(resume_from_checkpoint)
            self.control.should_training_stop = True
            return
        super()._run_epoch(
            epoch=epoch, start_time=start_time, resume_from_checkpoint=resume_from_checkpoint, **keywords
        )

    def _finalize_training(self, trial, num_train_samples, start_time):
        self._restore(0)
        start_time, self._earlier_seconds = start_time - self._earlier_seconds, 0.0
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _restore(self, epoch: int) -> None:
        """Put back what was in flight, once the Trainer has reset its own part of it."""
        state, self._resumed = self._resumed, None
        if state is None:
            return
        self._earlier_seconds = state["seconds"]
        self.model.train(state["training"])
        for name in (*IN_FLIGHT, *self._in_flight):
            setattr(self, name, state[name])
        for name in ("_metrics", "_logs"):
            resume_state.refill(getattr(self, name), state.get(name, {}))
        for _ in range(epoch if self._train_sampler is not None else 0):
            next(iter(self._train_sampler))  # an epoch's order is drawn after those of the epochs before it

    def _get_train_sampler(self, dataset=None):
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    # --- where a step begins and ends ---

    def training_step(self, *positional, **keywords):
        self._between_steps = False
        return super().training_step(*positional, **keywords)

    def _maybe_log_save_evaluate(self, *positional, **keywords):
        # A callback may have stopped the epoch or the run between two micro-batches of a step.
        self._between_steps |= self.accelerator.sync_gradients
        if not self._between_steps and self.control.should_save:
            self.control.should_save, self._deferred = False, True
        super()._maybe_log_save_evaluate(*positional, **keywords)
        if self._deferred and self._between_steps:
            self.control.should_save = True  # the evaluation has withdrawn it, under save_strategy="best"
            super()._maybe_log_save_evaluate(*positional, **keywords)
        elif self._deferred:
            logger.warning(
                f"No checkpoint is written after step {self.state.global_step}: a callback stopped training between "
                "two micro-batches of the next step, whose gradients no checkpoint holds. Resume from the one before."
            )
        self._deferred = False
