"""The benchmarks of the papers: where their problems are, how they are asked, and how an answer is scored.

`load_benchmark` makes of each a data set as `credit_trl.data` does: `prompt`, and the column that its reward reads.
`score` scores completions and says which answer each votes for.
"""

import base64
import difflib
import json
import pickletools
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from datasets import Dataset

from ..data.loading import BOXED_INSTRUCTION, FORMATS, load_data
from ..data.reasoning_gym import REASONING_GYM

CHOICE_INSTRUCTION = "Please reason step by step, and put the letter of your final answer within \\boxed{}."
YES_NO_INSTRUCTION = "Please reason step by step, and put your final answer, yes or no, within \\boxed{}."
CODE_INSTRUCTION = (
    "Write a Python program that reads from standard input and writes to standard output, in one block ```python."
)
STARTER_INSTRUCTION = "Complete this Python code, in one block ```python:"


def _latex(value: Any) -> str:
    """Math-verify reads lists such as "1, -1" and text as answers only where it is told that they are LaTeX."""
    text = str(value).strip()
    return text if "$" in text else f"${text}$"


def _after_hashes(value: str) -> str:
    return value.rpartition("####")[2].strip().replace(",", "")


def _joined(value: Sequence[str]) -> str:
    return _latex(", ".join(value))


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's problems are and what their columns mean.

    hub_id, config, split: of the data set on the Hugging Face hub.
    question, answer: columns. `read_answer` makes of the answer's value the `solution` that the reward reads.
    choices: for multiple choice, the column with the list of choices, or the columns with the wrong ones; these are
        then shuffled with the right one, in an order that depends on the problem's place in the data set alone.
    scorer: the name of a reward in `credit_trl.rewards.REWARDS`.
    instruction: added to the question on a line of its own.
    """

    hub_id: str
    split: str
    question: str
    answer: str
    config: str | None = None
    read_answer: Callable[[Any], str] = _latex
    choices: str | tuple[str, ...] | None = None
    scorer: str = "accuracy"
    instruction: str = BOXED_INSTRUCTION


# Names and columns are those that public evaluation code reads: lm-eval 0.4.13 or lighteval 0.13.0 for all but the
# five marked "seen in use", which several public repositories load with these columns. None was loaded from the hub
# when this was written.
BENCHMARKS: dict[str, Benchmark] = {
    "math500": Benchmark("HuggingFaceH4/MATH-500", "test", "problem", "answer"),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", "problem", "answer"),
    "aime25": Benchmark("math-ai/aime25", "test", "problem", "answer"),
    "amc23": Benchmark("math-ai/amc23", "test", "question", "answer"),  # seen in use
    "minerva": Benchmark("math-ai/minervamath", "test", "question", "answer"),  # seen in use
    "olympiadbench": Benchmark(  # the configuration (text only, English, competitions) is seen in use
        "Hothan/OlympiadBench", "train", "question", "final_answer", "OE_TO_maths_en_COMP", read_answer=_joined
    ),
    "hmmt25": Benchmark("MathArena/hmmt_feb_2025", "train", "problem", "answer"),  # seen in use
    "gsm8k": Benchmark("openai/gsm8k", "test", "question", "answer", "main", read_answer=_after_hashes),
    "gpqa_diamond": Benchmark(  # gated: its terms must be accepted on the hub
        "Idavidrein/gpqa",
        "train",
        "Question",
        "Correct Answer",
        "gpqa_diamond",
        read_answer=str,
        choices=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        scorer="choice",
        instruction=CHOICE_INSTRUCTION,
    ),
    "csqa": Benchmark(  # the answers of its split "test" are not public
        "tau/commonsense_qa",
        "validation",
        "question",
        "answerKey",
        read_answer=str,
        choices="choices",
        scorer="choice",
        instruction=CHOICE_INSTRUCTION,
    ),
    "mmlu_pro": Benchmark(
        "TIGER-Lab/MMLU-Pro",
        "test",
        "question",
        "answer",
        read_answer=str,
        choices="options",
        scorer="choice",
        instruction=CHOICE_INSTRUCTION,
    ),
    "strategyqa": Benchmark(  # seen in use
        "ChilleD/StrategyQA",
        "test",
        "question",
        "answer",
        read_answer=_yes_no,
        scorer="yes_no",
        instruction=YES_NO_INSTRUCTION,
    ),
    # Its tests are in three columns, which `_code_problem` reads.
    "livecodebench": Benchmark(
        "lighteval/code_generation_lite",
        "test",
        "question_content",
        "public_test_cases",
        "release_v6",
        scorer="code",
        instruction=CODE_INSTRUCTION,
    ),
}
MADE = ("testbed", REASONING_GYM + "<task>")


def scorer_of(name: str) -> str:
    """The name of the reward that scores the benchmark `name`.

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
    """The problems of the benchmark `name`, with `prompt` and the columns that its reward reads.

    Args:
        name: a key of `BENCHMARKS`, `testbed`, or `reasoning-gym/<task>`.
        data_dir: a folder with the benchmark's own columns in `<name>.parquet`, `<name>.jsonl` or `<name>.json`, to be
            read instead of the hub.
        limit: how many problems: the first ones after shuffling by `seed`. Of `testbed` and `reasoning-gym/<task>`,
            how many held-out problems to make. `None`: all, or 1000 made ones.
        seed: of the shuffle, or of the problems made.
        conversational: whether the prompt becomes a user message, for models with a chat template. The testbed's
            problems are text.
        dataset_kwargs: options of the testbed or of the reasoning-gym task, as in `load_data`.

    Raises `ValueError` for an unknown benchmark or task, a missing file or column, and answers of another kind.
    """
    scorer_of(name)
    if name not in BENCHMARKS:
        return load_data(
            name, split="test", size=limit, seed=seed, conversational=conversational, dataset_kwargs=dataset_kwargs
        )
    benchmark = BENCHMARKS[name]
    source, split, config = benchmark.hub_id, benchmark.split, benchmark.config
    if data_dir is not None:
        files = [Path(data_dir) / f"{name}{suffix}" for suffix in FORMATS]
        found = [file for file in files if file.is_file()]
        if not found:
            raise ValueError(f"there is no {name} in {data_dir}: it must be one of {', '.join(f.name for f in files)}")
        source, split, config = str(found[0]), "train", None  # the split of a single file
    rows = load_data(source, split=split, config=config, prompt_column=benchmark.question, instruction=None,
                     conversational=False)  # fmt: skip
    needed = [benchmark.answer]
    if benchmark.choices is not None:
        needed += [benchmark.choices] if isinstance(benchmark.choices, str) else benchmark.choices
    if benchmark.scorer == "code":
        needed += ["private_test_cases", "starter_code", "metadata"]
    missing = [column for column in needed if column not in rows.column_names]
    if missing:
        raise ValueError(f"{source} has no column {', '.join(missing)}. It has {', '.join(rows.column_names)}")

    def as_problem(row: dict[str, Any], index: int) -> dict[str, Any]:
        # `load_data` calls the question `prompt`.
        problem = _code_problem(row) if benchmark.scorer == "code" else _problem(benchmark, row, index)
        text = problem.pop("prompt")
        return {"prompt": [{"role": "user", "content": text}] if conversational else text, **problem}

    problems = rows.map(as_problem, with_indices=True, remove_columns=rows.column_names)
    if limit is not None and limit < len(problems):
        problems = problems.shuffle(seed=seed).select(range(limit))
    return problems


def _problem(benchmark: Benchmark, row: Mapping[str, Any], index: int) -> dict[str, str]:
    solution = benchmark.read_answer(row[benchmark.answer])
    lines = [row["prompt"].rstrip()]
    if benchmark.choices is not None:
        if isinstance(benchmark.choices, str):
            column = row[benchmark.choices]
            choices = column["text"] if isinstance(column, dict) else column
        else:
            choices = [solution, *(row[column] for column in benchmark.choices)]
            order = list(range(len(choices)))
            random.Random(index).shuffle(order)
            choices = [choices[place] for place in order]
            solution = ascii_uppercase[order.index(0)]
        letters = ascii_uppercase[: len(choices)]
        if solution not in list(letters):
            raise ValueError(f"problem {index} has the choices {letters}, and its answer is {solution!r}")
        lines += [f"({letter}) {choice.strip()}" for letter, choice in zip(letters, choices, strict=True)]
    return {"prompt": "\n".join([*lines, benchmark.instruction]), "solution": solution}


def _pickled_text(packed: bytes) -> str:
    """The text of a pickle of nothing but a text. The pickle is read as data and never run."""
    texts = [value for _, value, _ in pickletools.genops(packed) if isinstance(value, str)]
    if len(texts) != 1:
        raise ValueError(f"private_test_cases hold {len(texts)} texts, where one was expected")
    return texts[0]


def _code_problem(row: Mapping[str, Any]) -> dict[str, str]:
    """A problem of LiveCodeBench: its private tests are JSON, or that pickled, compressed and in base 64."""
    tests = json.loads(row["public_test_cases"])
    try:
        private = json.loads(row["private_test_cases"])
    except json.JSONDecodeError:
        packed = zlib.decompress(base64.b64decode(row["private_test_cases"]))
        private = json.loads(_pickled_text(packed))
    function = json.loads(row["metadata"]).get("func_name")
    named = {"fn_name": function} if function else {}
    tests = [test | named for test in [*tests, *private]]
    how = f"{STARTER_INSTRUCTION}\n```python\n{row['starter_code']}\n```" if row["starter_code"] else CODE_INSTRUCTION
    return {"prompt": f"{row['prompt'].rstrip()}\n{how}", "tests": json.dumps(tests)}
