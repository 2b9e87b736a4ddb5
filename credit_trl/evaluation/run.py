"""Run the one loop of every evaluation: sample completions, score them, and keep them if there is a folder.

`evaluate.py` keeps the completions in parts, so that a run goes on where it was interrupted. `PassAtKCallback`,
`pass_rate` and `train.py --eval_pass_rate` keep nothing. The engine is any of
`credit_trl.generation`.

A part is a parquet file with all completions of a chunk of problems. It is written under another name and then renamed,
so that a part that is there is whole.
"""

import inspect
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..generation.engines import Engine, Sampling, TransformersEngine, decode, encode
from ..generation.sampling import kept_random_state
from ..rewards.answers import RewardFunction
from .scoring import TRAINER_ARGUMENTS, score

COMPLETIONS = pa.schema(
    {
        "problem": pa.int32(),  # place in the benchmark
        "sample": pa.int32(),
        "prompt": pa.string(),  # text, or messages as JSON
        "completion": pa.string(),
        "num_tokens": pa.int32(),
        "truncated": pa.bool_(),
        "score": pa.float64(),  # null where the reward cannot judge the problem
        "answer": pa.string(),  # the vote of the completion; null without one
    }
)

Row = dict[str, Any]
# (completions, the problem of each, the token ids of each) -> their scores, and their votes where a vote makes sense
Scorer = Callable[
    [list[str] | list[list[dict[str, str]]], list[Row], list[list[int]]],
    tuple[Sequence[float | None], Sequence[str | None] | None],
]


def evaluate_problems(
    problems: Dataset,
    scorer: Scorer,
    engine: Engine,
    *,
    num_samples: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    folder: Path | None = None,
    accelerator: Accelerator | None = None,
    progress: str | None = None,
) -> list[Row]:
    """Sample and score completions of every problem. Random states of Python, NumPy and torch stay as they were.

    Args:
        problems: data set with `prompt`, text or messages, and what `scorer` reads.
        scorer: function of completions, their problems and their token ids, which returns scores and votes.
        engine: what samples.
        num_samples: completions of each problem.
        sampling: how they are sampled; None leaves it to the engine.
        seed: number from which each chunk gets a seed of its own, whatever was sampled before it. The only chunk of
            `chunk_size=None` has `seed` itself.
        chunk_size: problems that are sampled and scored together; None for all of them.
        chat_template_kwargs: options of the chat template.
        folder: where parts are kept, and taken from if they are there; None keeps nothing.
        accelerator: if given, processes share the problems. Each has equally many chunks of equally many problems,
            since some engines generate for several processes at once: the last problem may be made twice.
        progress: name of the progress bar; None shows none.

    Returns the rows of all completions, with the columns of `COMPLETIONS`, by problem and sample.
    """
    places = _share(len(problems), accelerator)
    size = chunk_size or len(places) or 1
    rows: list[Row] = []
    bar = tqdm(total=len(places), desc=progress, unit="problem", disable=progress is None, leave=folder is not None)
    with kept_random_state(seed), bar:
        for chunk, start in enumerate(range(0, len(places), size)):
            part = None if folder is None else folder / f"part-{chunk:05d}.parquet"
            if part is None or not part.is_file():
                chunk_seed = seed if chunk_size is None else _seed_of_chunk(seed, chunk)
                chosen = places[start : start + size]
                made = _make_chunk(
                    chosen, problems.select(chosen).to_list(), scorer, engine, num_samples, sampling, chunk_seed,
                    chat_template_kwargs or {},
                )  # fmt: skip
            if part is not None:
                if not part.is_file():
                    _write_part(part, made)
                made = pq.read_table(part).to_pylist()
            rows += made
            bar.update(len(made) // num_samples)
    return rows if accelerator is None else gather_object(rows)[: len(problems) * num_samples]


def _share(num_problems: int, accelerator: Accelerator | None) -> list[int]:
    """Return the indices of this process's problems: equally many on each process, by repeating the last one."""
    if accelerator is None:
        return list(range(num_problems))
    share = -(-num_problems // accelerator.num_processes)
    first = accelerator.process_index * share
    return [min(place, num_problems - 1) for place in range(first, first + share)]


def _seed_of_chunk(seed: int, chunk: int) -> int:
    return int(np.random.SeedSequence([seed, chunk]).generate_state(1)[0])


def _make_chunk(
    places: list[int],
    problems: list[Row],
    scorer: Scorer,
    engine: Engine,
    num_samples: int,
    sampling: Sampling | None,
    seed: int,
    chat_template_kwargs: dict[str, Any],
) -> list[Row]:
    prompt_ids = encode(engine.tokenizer, [problem["prompt"] for problem in problems], chat_template_kwargs)
    groups = engine.sample(prompt_ids, num_samples, sampling, seed)
    completions = [completion for group in groups for completion in group]
    completion_ids = [completion.ids for completion in completions]
    repeated = [problem for problem in problems for _ in range(num_samples)]
    answers = decode(engine.tokenizer, [problem["prompt"] for problem in repeated], completion_ids)
    scores, votes = scorer(answers, repeated, completion_ids)
    texts = engine.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    samples = [(place, sample) for place in places for sample in range(num_samples)]
    return [
        {
            "problem": place,
            "sample": sample,
            "prompt": problem["prompt"] if isinstance(problem["prompt"], str) else json.dumps(problem["prompt"]),
            "completion": text,
            "num_tokens": len(completion.ids),
            "truncated": completion.truncated,
            "score": value,
            "answer": vote,
        }
        for (place, sample), problem, text, completion, value, vote in zip(
            samples, repeated, texts, completions, scores, votes or [None] * len(completions), strict=True
        )
    ]


def _write_part(path: Path, rows: list[Row]) -> None:
    draft = path.with_suffix(".draft")
    pq.write_table(pa.Table.from_pylist(rows, schema=COMPLETIONS), draft)
    os.replace(draft, path)


def named_scorer(name: str) -> Scorer:
    """Return the scorer of the reward called `name`, as `scorer_of` gives it, with the votes of its completions."""
    return lambda completions, problems, completion_ids: score(name, completions, problems)


def reward_scorer(reward_func: RewardFunction) -> Scorer:
    """Return a scorer that calls `reward_func` as TRL does. Raises `ValueError` if it is asynchronous."""
    if inspect.iscoroutinefunction(reward_func):
        raise ValueError("a pass rate calls the reward function directly, and this one is asynchronous: wrap it first")

    def scorer(completions, problems, completion_ids):
        columns = {name: [problem[name] for problem in problems] for name in problems[0]}
        prompts = columns.pop("prompt")
        arguments = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        return reward_func(**arguments, **columns, **TRAINER_ARGUMENTS), None

    return scorer


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
) -> float:
    """Return the share, in [0, 1], of completions sampled from a model in memory whose reward is at least 1.

    Args:
        model: policy, not wrapped for distributed training. Its mode stays as it was.
        tokenizer: tokenizer of the model.
        dataset: problems, with a column `prompt` and the columns that `reward_func` reads.
        reward_func: function with TRL's signature. Completions for which it returns `None` do not count.
        num_samples: completions of each problem.
        max_completion_length: tokens; longer completions are cut there.
        sampling: options of `generate` such as `temperature` and `top_p`; by default the model's own distribution.
        chat_template_kwargs: options of the chat template, as in `GRPOConfig`.
        batch_size: completions sampled at a time.
        seed: seed of the sampling. The global random states are left as they were.
        accelerator: if given, its processes share the problems, and each returns the rate over all of them.

    Raises `ValueError` if there is no completion that counts, or if the reward function is asynchronous.
    """
    options = dict(sampling or {})
    known = {name: options.pop(name) for name in ("temperature", "top_p", "top_k") if name in options}
    return engine_pass_rate(
        TransformersEngine(model, tokenizer, batch_size=batch_size, options=options),
        dataset,
        reward_func,
        num_samples=num_samples,
        sampling=Sampling(**known, max_completion_length=max_completion_length),
        seed=seed,
        chat_template_kwargs=chat_template_kwargs,
        accelerator=accelerator,
    )


def engine_pass_rate(engine: Engine, dataset: Dataset, reward_func: RewardFunction, **options: Any) -> float:
    """Return the pass rate as `pass_rate` does, of what `engine` samples; `options` are `evaluate_problems`'."""
    rows = evaluate_problems(dataset, reward_scorer(reward_func), engine, **options)
    passed = [row["score"] >= 1 for row in rows if row["score"] is not None]
    if not passed:
        raise ValueError("no completion counts: the data set is empty, or the reward function returned None for all")
    return sum(passed) / len(passed)
