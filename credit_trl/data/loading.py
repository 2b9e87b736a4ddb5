"""Data sets as TRL's trainers want them: a column `prompt`, and the columns that the reward functions read.

`load_data` takes a name: `testbed`, `reasoning-gym/<task>`, a local file or folder, or a data set of the Hugging Face
hub.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..testbed.arithmetic import make_dataset
from .reasoning_gym import REASONING_GYM, _call, _make_tasks

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}

# Generated problems of the split "test" use seeds this far from those of "train": reasoning-gym's problem i of seed s
# is problem i - 1 of seed s + 1, so neighboring seeds would share almost all of their problems.
TEST_SEED_OFFSET = 2**24


def load_data(
    name: str,
    *,
    split: str = "train",
    config: str | None = None,
    size: int | None = None,
    seed: int = 0,
    prompt_column: str = "prompt",
    answer_column: str | None = None,
    instruction: str | None = BOXED_INSTRUCTION,
    conversational: bool = True,
    dataset_kwargs: dict[str, Any] | None = None,
) -> Dataset:
    """Load or make the data set `name`.

    Args:
        name: `testbed`, `reasoning-gym/<task>`, a local `.jsonl`, `.json` or `.parquet` file, a local folder of such
            files, or the name of a data set on the Hugging Face hub.
        split: the split to load, with the slices of `datasets` such as `train[:90%]`. A single file has the split
            `train`; generated data have `train` and `test`, which differ in their seeds.
        config: the configuration of a data set on the hub.
        size: how many problems to make (1000 if `None`), or how many rows to keep after shuffling (all if `None`).
        seed: of the generated problems, or of the shuffle that goes before `size`.
        prompt_column: the column that holds the problem, as text or as messages. It becomes `prompt`.
        answer_column: the column that holds the answer. It becomes `solution`, the name that TRL's rewards read, in
            place of a column that has this name already. `None` leaves the columns as they are.
        instruction: what to add to a problem that is text, on a line of its own; `None` or "" adds nothing. The
            testbed's problems stay as they are.
        conversational: whether a problem that is text becomes a user message, for models with a chat template.
        dataset_kwargs: options of the reasoning-gym task, such as `{"max_terms": 3}`, of `make_dataset` for the
            testbed, or of `datasets.load_dataset`.

    Returns:
        A `Dataset` with `prompt` and the other columns. Rows of `reasoning-gym/<task>` have `solution` and `task`, the
        JSON by which `task_reward` finds the problem again.

    Raises:
        ValueError: for an unknown task, option, path, split or column. The message lists what there is.
    """
    options = dataset_kwargs or {}
    if name == "testbed" or name.startswith(REASONING_GYM):
        if split not in ("train", "test"):
            raise ValueError(f"{name} has the splits train and test, got {split!r}")
        seed += TEST_SEED_OFFSET if split == "test" else 0
        if name == "testbed":
            return _call("the testbed", make_dataset, 1000 if size is None else size, seed=seed, **options)
        dataset = _make_tasks(name.removeprefix(REASONING_GYM), 1000 if size is None else size, seed, options)
    else:
        dataset = _read(name, split, config, options)
        if size is not None and size < len(dataset):
            dataset = dataset.shuffle(seed=seed).select(range(size))
        dataset = _rename(dataset, name, {prompt_column: "prompt", answer_column: "solution"})

    def as_prompt(row: dict[str, Any]) -> dict[str, Any]:
        prompt = row["prompt"]
        if isinstance(prompt, list):  # messages: their author has said all there is to say
            return row
        if not isinstance(prompt, str):
            raise ValueError(f"{name}: a problem is text or a list of messages, and {prompt_column!r} holds {prompt!r}")
        if instruction:
            prompt = f"{prompt.rstrip()}\n{instruction}"
        return {"prompt": [{"role": "user", "content": prompt}] if conversational else prompt}

    return dataset.map(as_prompt)


def _read(name: str, split: str, config: str | None, options: dict[str, Any]) -> Dataset:
    path = Path(name)
    if path.suffix in FORMATS and not path.is_file():
        raise ValueError(f"there is no file {name}")
    if name.startswith((".", "/", "~")) and not path.exists():
        raise ValueError(f"there is no file or folder {name}")
    if path.is_file() and path.suffix not in FORMATS:
        raise ValueError(f"cannot read {name}: expected one of {', '.join(FORMATS)}")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{name} is empty")
    try:
        if path.is_file():
            return _call(name, load_dataset, FORMATS[path.suffix], data_files=name, split=split, **options)
        return _call(name, load_dataset, name, config, split=split, **options)
    except DatasetGenerationError as error:
        raise ValueError(f"cannot read {name}: {error.__cause__ or error}") from error


def _rename(dataset: Dataset, name: str, targets: dict[str | None, str]) -> Dataset:
    """`dataset` with the columns of `targets` (old name -> new name; `None` is skipped) renamed."""
    for old, new in targets.items():
        if old is None:
            continue
        if old not in dataset.column_names:
            raise ValueError(
                f"{name} has no column {old!r}. It has {', '.join(dataset.column_names)}: choose with prompt_column "
                "and answer_column"
            )
        if old != new and new in dataset.column_names:
            dataset = dataset.remove_columns(new)
        dataset = dataset.rename_column(old, new) if old != new else dataset
    return dataset
