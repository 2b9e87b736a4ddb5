"""Data sets as TRL's trainers want them: a column `prompt`, and the columns that the reward functions read.

`load_data` takes a name: `testbed`, `reasoning-gym/<task>`, a local file or folder, or a data set of the Hugging Face
hub. What the columns of some thirty public ones mean is known (`known`).
"""

import codecs
import re
import warnings
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..testbed.arithmetic import make_dataset
from .problems import GOLDS, as_problem, check_golds, columns_of, gold_value, report_unread
from .public_datasets import BOXED_INSTRUCTION, KnownDataset, known_dataset
from .reasoning_gym import REASONING_GYM, _call, _make_tasks

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
    reward: str | None = None,
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
        prompt_column: the column that holds the problem, as text or as messages. It becomes `prompt`. A known data set
            of the hub needs neither this nor `answer_column`, unless it is to be read otherwise.
        answer_column: the column that holds the answer. It becomes `solution`, the name that TRL's rewards read, in
            place of a column that has this name already. A dot leads into a mapping: `reward_model.ground_truth`.
            `None` leaves the columns as they are.
        instruction: what to add to a problem that is text, on a line of its own; `None` or "" adds nothing. The
            default asks for an answer in the style that the known data set's reward reads. The testbed's problems stay
            as they are.
        conversational: whether a problem that is text becomes a user message, for models with a chat template.
        dataset_kwargs: options of the reasoning-gym task, such as `{"max_terms": 3}`, of `make_dataset` for the
            testbed, or of `datasets.load_dataset`.
        reward: the name of the reward that reads the golds, `accuracy`, `choice` or `yes_no`: each gold is read once
            as it will read it. `None` only looks for missing ones, in the column that `answer_column` names.

    Returns:
        A `Dataset` with `prompt` and the other columns; of a known data set, `prompt` and those that its reward reads:
        `solution`, or `tests`, or `nums` and `target`. Rows of `reasoning-gym/<task>` have `solution` and `task`, the
        JSON by which `task_reward` finds the problem again.

    Raises:
        ValueError: for an unknown task, option, path, split or column: the message lists what there is. For golds that
            cannot be read: it says how many, and which rows are the first. Known data sets whose proofs have no gold
            come without those rows, with a warning.
    """
    options = dataset_kwargs or {}
    if name == "testbed" or name.startswith(REASONING_GYM):
        if split not in ("train", "test"):
            raise ValueError(f"{name} has the splits train and test, got {split!r}")
        seed += TEST_SEED_OFFSET if split == "test" else 0
        if name == "testbed":
            return _call("the testbed", make_dataset, 1000 if size is None else size, seed=seed, **options)
        dataset = _make_tasks(name.removeprefix(REASONING_GYM), 1000 if size is None else size, seed, options)
    elif (known := _known(name, prompt_column, answer_column)) is not None:
        ask = known.instruction if instruction == BOXED_INSTRUCTION else instruction
        split, config = _split(known, split), config or known.config
        dataset = problems_of(known, read_rows(name, split, config, options), name, ask)
        if size is not None and size < len(dataset):
            dataset = dataset.shuffle(seed=seed).select(range(size))
        instruction = None
    else:
        dataset = read_rows(name, split, config, options)
        if size is not None and size < len(dataset):
            dataset = dataset.shuffle(seed=seed).select(range(size))
        dataset = _flatten(dataset, answer_column)
        dataset = _rename(dataset, name, {prompt_column: "prompt", answer_column: "solution"})
        column = next((column for column in ("solution", "answer") if column in dataset.column_names), None)
        if column is not None and (reward in GOLDS or answer_column is not None):
            check_golds(dataset, name, column, answer_column or column, reward)

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


def default_reward(name: str) -> str:
    """Return the name of the reward that fits the data set `name` of `load_data`: "accuracy" where it is not known."""
    if name == "testbed":
        return "testbed"
    if name.startswith(REASONING_GYM):
        return "task"
    known = known_dataset(name)
    return "accuracy" if known is None or Path(name).exists() else known.reward


def _known(name: str, prompt_column: str, answer_column: str | None) -> KnownDataset | None:
    """Return what is known of the data set, unless it is a local copy or the user says how to read it."""
    known = known_dataset(name)
    if (
        known is None
        or Path(name).exists()
        or answer_column is not None
        or prompt_column not in ("prompt", known.question)
    ):
        return None
    return known


def _split(known: KnownDataset, split: str) -> str:
    """Return `split`, which may have a slice, with the data set's own names for "train" and "test"."""
    head = re.match(r"(train|test)\b", split)
    if head is None:
        return split
    own = known.train if head[1] == "train" else known.test
    if own is None:
        other = known.test if head[1] == "train" else f"{known.train}[-500:]"
        raise ValueError(f"{known.name} has no split for {head[1]!r}: take {other!r}, or hold out a slice of it")
    return own + split[head.end() :]


def problems_of(known: KnownDataset, rows: Dataset, name: str, instruction: str | None) -> Dataset:
    """Return the problems of a known data set: `prompt`, and the columns that its reward reads.

    Args:
        known: what the columns mean.
        rows: as the data set has them.
        name: what errors call the data set.
        instruction: goes below a problem that is text; `None` or "" adds nothing.

    Raises `ValueError` for missing columns, and for golds that cannot be read, unless the data set is known to have
    rows without one: these are left out with a warning.
    """
    missing = [column for column in columns_of(known) if column not in rows.column_names]
    if missing:
        raise ValueError(f"{name} has no column {', '.join(missing)}. It has {', '.join(rows.column_names)}")
    parts, problems, unread = [], [], []
    for index, row in enumerate(rows.select_columns(columns_of(known))):
        problem = as_problem(known, row, index, instruction)
        if problem is None:
            unread.append((index, gold_value(known, row)))
        else:
            problems.append(problem)
        if len(problems) == 10_000:  # packed before there are more: some data sets have millions of rows
            parts.append(Dataset.from_list(problems))
            problems = []
    if problems:
        parts.append(Dataset.from_list(problems))
    if unread:
        report = report_unread(name, known.answer, f"the reward {known.reward}", unread, len(rows))
        if not known.incomplete or not parts:
            raise ValueError(report)
        warnings.warn(f"{report}: these rows are left out", stacklevel=3)
    if not parts:
        raise ValueError(f"{name} has no rows")
    return concatenate_datasets(parts)


def read_rows(name: str, split: str, config: str | None, options: dict[str, Any]) -> Dataset:
    """Return the rows of a local file or folder, or of a data set of the hub, as they stand."""
    path = Path(name)
    if path.suffix in FORMATS and not path.is_file():
        raise ValueError(f"there is no file {name}")
    if name.startswith((".", "/", "~")) and not path.exists():
        raise ValueError(f"there is no file or folder {name}")
    if path.is_file() and path.suffix not in FORMATS:
        raise ValueError(f"cannot read {name}: expected one of {', '.join(FORMATS)}")
    if path.is_file():
        _check_format(path)
    try:
        if path.is_file():
            return _call(name, load_dataset, FORMATS[path.suffix], data_files=name, split=split, **options)
        return _call(name, load_dataset, name, config, split=split, **options)
    except DatasetGenerationError as error:
        raise ValueError(f"cannot read {name}: {error.__cause__ or error}") from error


def _check_format(path: Path) -> None:
    """Raise `ValueError` where a local file is empty, or not what its name says."""
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise ValueError(f"{path} is empty")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is UTF-16 text: save it as UTF-8")
    if (head == b"PAR1") != (path.suffix == ".parquet"):
        kind = "a parquet file" if head == b"PAR1" else "no parquet file"
        raise ValueError(f"{path} is {kind}: give it the ending of its format ({', '.join(FORMATS)})")


def _flatten(dataset: Dataset, column: str | None) -> Dataset:
    """Return `dataset` with the field that a name such as `reward_model.ground_truth` leads to as a column."""
    head, _, _ = (column or "").partition(".")
    return dataset.flatten() if column not in dataset.column_names and head in dataset.column_names else dataset


def _rename(dataset: Dataset, name: str, targets: dict[str | None, str]) -> Dataset:
    """Return `dataset` with the columns of `targets` (old name -> new name; `None` is skipped) renamed."""
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
