"""Refuse data from which no batch can be made: TRL ends such a run in a `KeyError`, or without having trained."""

from collections.abc import Sized
from typing import Any

from datasets import Dataset
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

KNOWN_PACKAGES = ("trl", "transformers", "credit_trl")  # whose methods leave prompts alone, and sample as TRL does

# Methods through which rows pass from the data set to the sampling
_WAY_OF_ROWS = (
    "get_train_dataloader",
    "_get_dataloader",
    "get_batch_samples",
    "training_step",
    "_prepare_inputs",
    "_generate_and_score_completions",
)


def check_prompts(trainer_class: type[GRPOTrainer], train_dataset: Any, environment_factory: Any) -> None:
    """Raise `ValueError` if `train_dataset` is known to lack the prompts.

    They may still be made later: by a transform (`set_transform`), by an environment, or by a method of a user's
    subclass through which the rows pass.
    """
    columns = train_dataset.column_names if isinstance(train_dataset, Dataset) else []
    if not columns or "prompt" in columns or train_dataset.format["type"] == "custom" or environment_factory:
        return
    functions = (getattr(trainer_class, name) for name in _WAY_OF_ROWS)
    modules = (getattr(function, "__globals__", {}).get("__name__", "") for function in functions)
    if all(module.split(".")[0] in KNOWN_PACKAGES for module in modules):
        raise ValueError(
            f"train_dataset has no column 'prompt'. It has {', '.join(columns)}: rename the one that has the problem, "
            f"as in train_dataset.rename_column({columns[0]!r}, 'prompt')."
        )


def check_fills_a_batch(trainer: GRPOTrainer) -> None:
    """Raise `ValueError` if there are fewer prompts than a generation batch has: TRL drops what fills no batch.

    A data loader or a sampler of the user's own may repeat prompts, and is left alone.
    """
    args: Any = trainer.args
    data, loader = trainer.train_dataset, getattr(trainer.get_train_dataloader, "__func__", None)
    if not isinstance(data, Sized) or loader is not GRPOTrainer.get_train_dataloader:
        return
    sampler = trainer._get_train_sampler()
    if isinstance(sampler, RepeatSampler) and sampler.num_samples < sampler.batch_size:
        raise ValueError(
            f"The training data have {len(data)} prompts, and a generation batch takes {sampler.batch_size} different "
            f"ones (generation_batch_size={args.generation_batch_size} completions, num_generations="
            f"{trainer.num_generations} of each), so that nothing would be trained. Use more data, a smaller "
            "per_device_train_batch_size or steps_per_generation, or a larger num_generations."
        )
