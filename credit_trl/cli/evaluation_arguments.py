"""Define and read the options of `evaluate.py`."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from trl import TrlParser

from ..data.reasoning_gym import REASONING_GYM
from ..evaluation.tasks import BENCHMARKS, MADE, scorer_of
from ..generation.engines import Sampling
from ..testbed import BASE_MODEL
from .checks import check_output
from .recipe import config_of, read_settings, set_defaults
from .usage import UsageError, check_model_folder, read_mapping, refuse_unknown, usage_errors

USAGE = "python evaluate.py [--model MODEL] [--benchmarks NAME ...] [--config FILE.yaml] [--OPTION VALUE ...]"
DESCRIPTION = "Measure a language model on the papers' benchmarks."


@dataclass
class EvaluationArguments:
    """Say which model to evaluate, on which benchmarks, and how to sample it."""

    model: str | None = field(
        default=None, metadata={"help": "A model of the hub or the folder of one. Default: the testbed's, on it alone."}
    )
    revision: str = field(default="main", metadata={"help": "Revision of a model of the hub."})
    benchmarks: list[str] = field(
        default_factory=lambda: ["testbed"], metadata={"help": f"Any of {', '.join([*BENCHMARKS, *MADE])}."}
    )
    k: int = field(default=16, metadata={"help": "Completions sampled for each problem."})
    limit: int | None = field(
        default=None, metadata={"help": "Problems of each benchmark, drawn by --seed. Default: all, or 1000 made ones."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "A folder with <benchmark>.parquet or .jsonl files, to be read instead of the hub."},
    )
    dataset_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Options of the reasoning-gym tasks and the testbed, as JSON, such as '{\"max_terms\": 3}'."},
    )
    output: str = field(
        default="runs/evaluation-{model}",
        metadata={"help": "Folder of the results. What is already there is kept, and the run goes on from it."},
    )
    engine: str = field(
        default="transformers", metadata={"help": "Engine that generates.", "choices": ["transformers", "vllm"]}
    )
    temperature: float = field(default=1.0, metadata={"help": "0 takes the likeliest token each time (with --k 1)."})
    top_p: float = field(default=1.0, metadata={"help": "Share of the likeliest tokens that is sampled from."})
    top_k: int = field(default=0, metadata={"help": "Number of the likeliest tokens to sample from; 0: all."})
    max_completion_length: int = field(default=4096, metadata={"help": "Limit in tokens; longer completions are cut."})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Options of the chat template, as JSON, such as '{\"enable_thinking\": false}'."},
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of the sampling, the choice of problems and the problems made."}
    )
    dtype: str = field(
        default="auto",
        metadata={"help": "Type of the weights.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    chunk_size: int = field(
        default=32, metadata={"help": "Problems sampled and kept together; an interrupted run loses at most one chunk."}
    )
    batch_size: int = field(default=128, metadata={"help": "Completions at a time with the engine transformers."})
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that share the model with the engine vllm."})
    gpu_memory_utilization: float = field(default=0.9, metadata={"help": "Share of the GPU's memory for vllm."})

    def __post_init__(self):
        if isinstance(self.benchmarks, str):  # in YAML a single name needs no brackets
            self.benchmarks = [self.benchmarks]
        if self.k < 1 or self.chunk_size < 1 or self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise UsageError("k, limit, chunk_size and batch_size must be at least 1")
        if self.temperature == 0 and self.k > 1:
            raise UsageError("temperature 0 gives the same completion every time: take --k 1, or a temperature above 0")
        self.dataset_kwargs = read_mapping("dataset_kwargs", self.dataset_kwargs) or {}
        self.chat_template_kwargs = read_mapping("chat_template_kwargs", self.chat_template_kwargs) or {}
        with usage_errors(ValueError):
            self.sampling = Sampling(self.temperature, self.top_p, self.top_k, self.max_completion_length)
            for name in self.benchmarks:
                scorer_of(name)
        if len(set(self.benchmarks)) < len(self.benchmarks):
            raise UsageError(f"benchmarks names one twice: {', '.join(self.benchmarks)}")
        if self.model is None and self.benchmarks != ["testbed"]:
            raise UsageError("model is missing: a model of the hub or the folder of a local one")
        model_name = "testbed" if self.model is None else Path(self.model).name
        self.output = self.output.replace("{model}", model_name)
        self.model = str(BASE_MODEL) if self.model is None else self.model
        check_model_folder(self.model)
        check_output("output", self.output)

    def settings(self) -> dict[str, Any]:
        """Return what decides the completions of given problems. A run goes on only with the settings it began with."""
        return {
            **{option: getattr(self, option) for option in ("model", "revision", "dtype", "engine", "k", "seed")},
            **asdict(self.sampling),
            "chat_template_kwargs": self.chat_template_kwargs,
            "chunk_size": self.chunk_size,
            # Other batches draw other random numbers; vLLM's prompts have seeds of their own.
            "batch_size": self.batch_size if self.engine == "transformers" else None,
        }

    def options_of(self, benchmark: str) -> dict[str, Any] | None:
        """Return `dataset_kwargs` for problems that are made, and None for stored ones, which have no options."""
        made = benchmark == "testbed" or benchmark.startswith(REASONING_GYM)
        return self.dataset_kwargs if made else None  # type: ignore[return-value]  # no text after __post_init__


def parse(argv: list[str]) -> EvaluationArguments:
    """Return the arguments. Raises `UsageError` for what the command line or the YAML file has wrong."""
    groups: list[Any] = [EvaluationArguments]
    config, rest = config_of(argv, USAGE)
    parser = TrlParser(groups, usage=USAGE, description=DESCRIPTION)
    names = [spec.name for spec in fields(EvaluationArguments)]
    if config is not None:
        refuse_unknown(set_defaults(parser, read_settings(config), groups, config), names)
    with usage_errors(ValueError):
        arguments, unused = parser.parse_args_into_dataclasses(rest, return_remaining_strings=True)
    refuse_unknown(unused, names)
    return arguments
