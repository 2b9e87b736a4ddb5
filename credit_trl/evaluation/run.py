"""A run over a benchmark that can be interrupted: completions are kept in parts, a table of estimates is made of them.

A part is a parquet file with all completions of a chunk of problems. It is written under another name and then renamed,
so that a part that is there is whole.
"""

import hashlib
import inspect
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..generation.engines import Completion, Engine, Sampling, decode, encode, generate, own_random_state
from ..rewards.answers import RewardFunction
from .report import _write_text
from .scoring import TRAINER_ARGUMENTS, score

COMPLETIONS = pa.schema(
    {
        "problem": pa.int32(),  # its place in the benchmark
        "sample": pa.int32(),
        "prompt": pa.string(),  # messages as JSON
        "completion": pa.string(),
        "num_tokens": pa.int32(),
        "truncated": pa.bool_(),
        "score": pa.float64(),  # none where the reward cannot judge the problem
        "answer": pa.string(),  # what it votes for, if anything
    }
)


def fingerprint(problems: Dataset) -> str:
    """A digest of the problems, which tells whether a run goes on with those that it began with."""
    return hashlib.sha256(json.dumps(problems.to_list(), sort_keys=True).encode()).hexdigest()


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note the settings of a run in `folder`, or raise `ValueError` if what lies there was made with others."""
    path = folder / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in sorted({*before, *settings}) if before.get(name) != settings.get(name)]
        if changed:
            changes = ", ".join(f"{name} (was {before.get(name)!r}, is {settings.get(name)!r})" for name in changed)
            raise ValueError(
                f"{folder} holds completions made with another {changes}. Go on with the settings it began with, or "
                "choose another output folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write_text(path, json.dumps(settings, indent=2) + "\n")


def run_benchmark(
    name: str,
    problems: Dataset,
    scorer: str,
    engine: Engine,
    folder: Path,
    *,
    num_samples: int,
    sampling: Sampling,
    seed: int = 0,
    chunk_size: int = 32,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Sample and score completions of every problem and keep them in `folder`; parts already there are not made again.

    Every chunk is sampled with a seed made of `seed` and its place, so that an interrupted run ends as another would.

    Args:
        name: of the benchmark, for the progress bar.
        problems: as `load_benchmark` makes them.
        scorer: the name of a reward, as `scorer_of` gives it.
        num_samples: completions for each problem.
        chunk_size: problems a part.
        chat_template_kwargs: options of the chat template.

    Returns the rows of all completions, with the columns of `COMPLETIONS`, by problem and sample.
    """
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(problems), desc=name, unit="problem") as bar:
        for chunk, start in enumerate(range(0, len(problems), chunk_size)):
            part = folder / f"part-{chunk:05d}.parquet"
            if not part.is_file():
                chosen = problems.select(range(start, min(start + chunk_size, len(problems)))).to_list()
                prompts = [row["prompt"] for row in chosen]
                chunk_seed = int(np.random.SeedSequence([seed, chunk]).generate_state(1)[0])
                prompt_ids = encode(engine.tokenizer, prompts, chat_template_kwargs or {})
                completions = engine.sample(prompt_ids, num_samples, sampling, chunk_seed)
                _write_part(part, _scored(start, chosen, completions, scorer, engine.tokenizer))
            made = pq.read_table(part).to_pylist()
            rows += made
            bar.update(len(made) // num_samples)
    return rows


def _scored(
    start: int,
    problems: list[dict[str, Any]],
    completions: list[list[Completion]],
    scorer: str,
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict[str, Any]]:
    repeated = [problem for problem, group in zip(problems, completions, strict=True) for _ in group]
    flat = [completion for group in completions for completion in group]
    answers = decode(tokenizer, [row["prompt"] for row in repeated], [one.ids for one in flat])
    scores, votes = score(scorer, answers, repeated)
    texts = tokenizer.batch_decode([one.ids for one in flat], skip_special_tokens=True)
    samples = [(start + place, sample) for place, group in enumerate(completions) for sample in range(len(group))]
    return [
        {
            "problem": problem,
            "sample": sample,
            "prompt": row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"]),
            "completion": text,
            "num_tokens": len(one.ids),
            "truncated": one.truncated,
            "score": value,
            "answer": vote,
        }
        for (problem, sample), row, text, one, value, vote in zip(
            samples, repeated, texts, flat, scores, votes or [None] * len(flat), strict=True
        )
    ]


def _write_part(path: Path, rows: list[dict[str, Any]]) -> None:
    draft = path.with_suffix(".draft")
    pq.write_table(pa.Table.from_pylist(rows, schema=COMPLETIONS), draft)
    os.replace(draft, path)


def pass_rate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    reward_func: RewardFunction,
    *,
    num_samples: int = 4,
    max_completion_length: int = 256,
    sampling: dict[str, Any] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    show_progress: bool = False,
) -> float:
    """The share, in [0, 1], of sampled completions whose reward is 1.

    Args:
        model: the policy, not wrapped for distributed training.
        tokenizer: with left padding.
        dataset: problems, with a column `prompt` and the columns that `reward_func` reads.
        reward_func: in TRL's signature, synchronous. Completions for which it returns `None` do not count.
        num_samples: completions sampled a problem.
        max_completion_length: in tokens; longer completions are cut there.
        sampling: options of `generate` such as `temperature` and `top_p`; by default the model's own distribution.
        chat_template_kwargs: options of the chat template, as in `GRPOConfig`.
        batch_size: completions sampled at a time.
        seed: of the sampling. The global random state is left as it was.
        accelerator: shares the problems out over its processes; every process gets the rate over all of them.
        show_progress: whether to show a progress bar.

    Raises `ValueError` if there is no completion that counts, or if the reward function is asynchronous.
    """
    if inspect.iscoroutinefunction(reward_func):
        raise ValueError("pass_rate calls the reward function directly, and this one is asynchronous: wrap it first")
    if accelerator is not None and accelerator.num_processes > 1:
        dataset = dataset.shard(accelerator.num_processes, accelerator.process_index)
    rows = [row for row in dataset for _ in range(num_samples)]
    rewards: list[float] = []
    with own_random_state(model, seed):
        starts = range(0, len(rows), batch_size)
        for start in tqdm(starts, desc="pass rate", disable=not show_progress, leave=False):
            batch = rows[start : start + batch_size]
            completions, completion_ids = _complete(
                model, tokenizer, batch, max_completion_length, sampling or {}, chat_template_kwargs or {}
            )
            columns = {name: [row[name] for row in batch] for name in dataset.column_names if name != "prompt"}
            outcome = reward_func(
                prompts=[row["prompt"] for row in batch],
                completions=completions,
                completion_ids=completion_ids,
                **columns,
                **TRAINER_ARGUMENTS,
            )
            rewards += [reward for reward in outcome if reward is not None]

    counts = torch.tensor([sum(reward >= 1 for reward in rewards), len(rewards)], device=model.device)
    if accelerator is not None:
        counts = accelerator.reduce(counts, reduction="sum")
    passed, total = counts.tolist()
    if total == 0:
        raise ValueError("no completion counts: the data set is empty, or the reward function returned None for all")
    return passed / total


def _complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    max_completion_length: int,
    sampling: dict[str, Any],
    chat_template_kwargs: dict[str, Any],
) -> tuple[list[str] | list[list[dict[str, str]]], list[list[int]]]:
    """One sampled completion a row and its token ids, as TRL hands them to reward functions."""
    prompts = [row["prompt"] for row in rows]
    prompt_ids = encode(tokenizer, prompts, chat_template_kwargs)
    completion_ids = generate(model, tokenizer, prompt_ids, max_completion_length, sampling)
    return decode(tokenizer, prompts, completion_ids), completion_ids
