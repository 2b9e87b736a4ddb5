"""Measure a language model on the papers' benchmarks: `python evaluate.py --help`."""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trl import TrlParser

from credit_trl.data.reasoning_gym import REASONING_GYM
from credit_trl.evaluation.report import summarize, write_results
from credit_trl.evaluation.run import check_settings, fingerprint, run_benchmark
from credit_trl.evaluation.tasks import BENCHMARKS, MADE, load_benchmark, scorer_of
from credit_trl.generation.engines import Engine, Sampling, TransformersEngine, VLLMEngine
from credit_trl.testbed import BASE_MODEL
from credit_trl.visualization.curves import pass_at_k_curve

USAGE = "python evaluate.py [--model MODEL] [--benchmarks NAME ...] [--config FILE.yaml] [--OPTION VALUE ...]"


@dataclass
class EvaluationArguments:
    """Which model, on which benchmarks, and how it is sampled."""

    model: str | None = field(
        default=None, metadata={"help": "A model of the hub or the folder of one. Default: the testbed's, on it alone."}
    )
    revision: str = field(default="main", metadata={"help": "Of a model of the hub."})
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
    dataset_kwargs: str | None = field(
        default=None,
        metadata={"help": "Options of the reasoning-gym tasks and the testbed, as JSON, such as '{\"max_terms\": 3}'."},
    )
    output: str = field(
        default="runs/evaluation-{model}",
        metadata={"help": "Folder of the results. What is already there is kept, and the run goes on from it."},
    )
    engine: str = field(
        default="transformers", metadata={"help": "What generates.", "choices": ["transformers", "vllm"]}
    )
    temperature: float = field(default=1.0, metadata={"help": "0 takes the likeliest token each time (with --k 1)."})
    top_p: float = field(default=1.0, metadata={"help": "Share of the likeliest tokens that is sampled from."})
    top_k: int = field(default=0, metadata={"help": "Number of the likeliest tokens to sample from; 0: all."})
    max_completion_length: int = field(default=4096, metadata={"help": "In tokens; longer completions are cut."})
    chat_template_kwargs: str | None = field(
        default=None,
        metadata={"help": "Options of the chat template, as JSON, such as '{\"enable_thinking\": false}'."},
    )
    seed: int = field(default=0, metadata={"help": "Of the sampling, the choice of problems and the problems made."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights, such as bfloat16."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    chunk_size: int = field(
        default=32, metadata={"help": "Problems sampled and kept together; an interrupted run loses at most one chunk."}
    )
    batch_size: int = field(default=128, metadata={"help": "Completions at a time with the engine transformers."})
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that share the model with the engine vllm."})
    gpu_memory_utilization: float = field(default=0.9, metadata={"help": "Share of the GPU's memory for vllm."})

    def __post_init__(self):
        if self.k < 1 or self.chunk_size < 1 or self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError("k, limit, chunk_size and batch_size must be at least 1")
        if self.temperature == 0 and self.k > 1:
            raise ValueError("temperature 0 gives the same completion every time: take --k 1, or a temperature above 0")
        for name in self.benchmarks:
            scorer_of(name)
        if len(set(self.benchmarks)) < len(self.benchmarks):
            raise ValueError(f"benchmarks names one twice: {', '.join(self.benchmarks)}")
        if self.model is None and self.benchmarks != ["testbed"]:
            raise ValueError("model is missing: a model of the hub or the folder of a local one")
        model_name = "testbed" if self.model is None else Path(self.model).name
        self.output = self.output.replace("{model}", model_name)
        self.model = str(BASE_MODEL) if self.model is None else self.model
        if self.model.startswith((".", "/", "~", "models/", "runs/")) and not Path(self.model).is_dir():
            raise ValueError(f"there is no model folder {self.model}")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_completion_length)


def parse(argv: list[str]) -> EvaluationArguments:
    """The arguments. Raises `ValueError` for what the command line or the YAML file has wrong."""
    parser = TrlParser([EvaluationArguments], usage=USAGE, description=__doc__)
    (arguments,) = parser.parse_args_and_config(argv)
    return arguments


def read_json(option: str, text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} is no JSON object: {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{option} is no JSON object: {text!r}")
    return value


def make_engine(args: EvaluationArguments) -> Engine:
    common = dict(revision=args.revision, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    if args.engine == "vllm":
        return VLLMEngine(
            args.model,
            tensor_parallel_size=args.tensor_parallel_size,
            gpu_memory_utilization=args.gpu_memory_utilization,
            seed=args.seed,
            **common,
        )
    return TransformersEngine(args.model, batch_size=args.batch_size, **common)


def evaluate(args: EvaluationArguments) -> dict[str, dict[str, Any]]:
    """Run the benchmarks, write the results after each of them, and return the results."""
    dataset_kwargs = read_json("dataset_kwargs", args.dataset_kwargs)
    chat_template_kwargs = read_json("chat_template_kwargs", args.chat_template_kwargs)
    sampling, folder = args.sampling, Path(args.output)
    engine = make_engine(args)
    conversational = engine.tokenizer.chat_template is not None
    runs = {}
    for name in args.benchmarks:
        made = name == "testbed" or name.startswith(REASONING_GYM)
        problems = load_benchmark(
            name,
            data_dir=args.data_dir,
            limit=args.limit,
            seed=args.seed,
            conversational=conversational,
            dataset_kwargs=dataset_kwargs if made else None,
        )
        settings = {
            **{option: getattr(args, option) for option in ("model", "revision", "dtype", "engine", "k", "seed")},
            **asdict(sampling),
            "chat_template_kwargs": chat_template_kwargs,
            "chunk_size": args.chunk_size,
            # Other batches draw other random numbers; vLLM's prompts have seeds of their own.
            "batch_size": args.batch_size if args.engine == "transformers" else None,
            "problems": fingerprint(problems),
        }
        runs[name] = folder / name.replace("/", "-"), problems
        check_settings(runs[name][0], settings)  # of all, before the first is sampled

    results = {}
    for name, (part_folder, problems) in runs.items():
        scorer = scorer_of(name)
        rows = run_benchmark(
            name,
            problems,
            scorer,
            engine,
            part_folder,
            num_samples=args.k,
            sampling=sampling,
            seed=args.seed,
            chunk_size=args.chunk_size,
            chat_template_kwargs=chat_template_kwargs,
        )
        results[name] = summarize(rows, args.k, with_votes=scorer != "code")
        write_results(folder, results)
    return results


def main() -> None:
    try:
        args = parse(sys.argv[1:])
        results = evaluate(args)
    except (ValueError, OSError) as error:  # what the user can mend, in one line
        raise SystemExit(f"evaluate.py: error: {' '.join(str(error).split())}") from None
    print((Path(args.output) / "results.md").read_text(encoding="utf-8"))
    if args.k > 1:
        picture = pass_at_k_curve(results, Path(args.output) / "pass_at_k.png")
        print(f"pass@k drawn in {picture}")
    print(f"completions and results in {args.output}")


if __name__ == "__main__":
    main()
