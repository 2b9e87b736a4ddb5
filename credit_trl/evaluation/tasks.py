"""Define the papers' benchmarks: which data sets they are, in which splits, and how an answer is scored.

What their columns mean is in `credit_trl.data.public_datasets`, for training and evaluation alike. `load_benchmark`
makes of each a data set as `load_data` does: `prompt`, and the column that its reward reads.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data.loading import FORMATS, load_data, problems_of, read_rows
from ..data.public_datasets import KnownDataset, known_dataset
from ..data.reasoning_gym import REASONING_GYM


@dataclass(frozen=True)
class Benchmark:
    """Name a split of a known data set.

    Attributes:
        hub_id: the data set's name on the Hugging Face hub.
        split: the split that is evaluated.
    """

    hub_id: str
    split: str

    @property
    def known(self) -> KnownDataset:
        """Return what the data set's columns mean."""
        known = known_dataset(self.hub_id)
        assert known is not None
        return known

    @property
    def scorer(self) -> str:
        """Return the name of a reward in `credit_trl.rewards.REWARDS`."""
        return self.known.reward

    @property
    def instruction(self) -> str:
        """Return what is added to the question on a line of its own."""
        return self.known.instruction


BENCHMARKS: dict[str, Benchmark] = {
    "math500": Benchmark("HuggingFaceH4/MATH-500", "test"),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train"),
    "aime25": Benchmark("math-ai/aime25", "test"),
    "amc23": Benchmark("math-ai/amc23", "test"),
    "minerva": Benchmark("math-ai/minervamath", "test"),
    "olympiadbench": Benchmark("Hothan/OlympiadBench", "train"),
    "hmmt25": Benchmark("MathArena/hmmt_feb_2025", "train"),
    "gsm8k": Benchmark("openai/gsm8k", "test"),
    "gpqa_diamond": Benchmark("Idavidrein/gpqa", "train"),  # gated: its terms must be accepted on the hub
    "csqa": Benchmark("tau/commonsense_qa", "validation"),  # the answers of its split "test" are not public
    "mmlu_pro": Benchmark("TIGER-Lab/MMLU-Pro", "test"),
    "arc_challenge": Benchmark("allenai/ai2_arc", "test"),
    "strategyqa": Benchmark("ChilleD/StrategyQA", "test"),
    "livecodebench": Benchmark("lighteval/code_generation_lite", "test"),
}
MADE = ("testbed", REASONING_GYM + "<task>")


def scorer_of(name: str) -> str:
    """Return the name of the reward that scores the benchmark `name`.

    Raises `ValueError` if there is no such benchmark.
    """
    if name == "testbed":
        return "testbed"
    if name.startswith(REASONING_GYM):
        return "task"
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, [*BENCHMARKS, "testbed"], n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise ValueError(f"there is no benchmark {name!r}. {hint}There are {', '.join([*BENCHMARKS, *MADE])}")
    return BENCHMARKS[name].scorer


def load_benchmark(
    name: str,
    *,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    conversational: bool = True,
    dataset_kwargs: dict[str, Any] | None = None,
) -> Dataset:
    """Return the problems of the benchmark `name`, with `prompt` and the columns that its reward reads.

    Args:
        name: a key of `BENCHMARKS`, `testbed`, or `reasoning-gym/<task>`.
        data_dir: a folder with the benchmark's own columns in `<name>.parquet`, `<name>.jsonl` or `<name>.json`, to be
            read instead of the hub.
        limit: how many problems: the first ones after shuffling by `seed`. Of `testbed` and `reasoning-gym/<task>`,
            how many held-out problems to make. `None`: all, or 1000 made ones.
        seed: seed of the shuffle, or of the problems made.
        conversational: whether the prompt becomes a user message, for models with a chat template. The testbed's
            problems are text.
        dataset_kwargs: options of the testbed or of the reasoning-gym task, as in `load_data`.

    Raises `ValueError` for an unknown benchmark or task, a missing file or column, and for golds that cannot be read:
    it names their number, the first rows and the column.
    """
    scorer_of(name)
    if name not in BENCHMARKS:
        return load_data(
            name, split="test", size=limit, seed=seed, conversational=conversational, dataset_kwargs=dataset_kwargs
        )
    benchmark = BENCHMARKS[name]
    source, split, config = benchmark.hub_id, benchmark.split, benchmark.known.config
    if data_dir is not None:
        files = [Path(data_dir) / f"{name}{suffix}" for suffix in FORMATS]
        found = [file for file in files if file.is_file()]
        if not found:
            raise ValueError(f"there is no {name} in {data_dir}: it must be one of {', '.join(f.name for f in files)}")
        source, split, config = str(found[0]), "train", None  # the split of a single file
    problems = problems_of(benchmark.known, read_rows(source, split, config, {}), source, benchmark.instruction)
    if conversational:
        problems = problems.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    if limit is not None and limit < len(problems):
        problems = problems.shuffle(seed=seed).select(range(limit))
    return problems
