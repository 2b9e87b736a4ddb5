"""Measure a language model on the papers' benchmarks: `python evaluate.py --help`."""

import sys
from pathlib import Path
from typing import Any

from credit_trl.cli.evaluation_arguments import EvaluationArguments, parse
from credit_trl.cli.usage import UsageError, from_hub, memory_advice, one_line, usage_errors
from credit_trl.evaluation.report import check_settings, fingerprint, summarize, write_results
from credit_trl.evaluation.run import evaluate_problems, named_scorer
from credit_trl.evaluation.tasks import load_benchmark, scorer_of
from credit_trl.generation.engines import Engine, TransformersEngine, VLLMEngine
from credit_trl.visualization.curves import pass_at_k_curve

MEMORY_ADVICE = (
    "The memory is full. Less is needed with a smaller batch_size or max_completion_length, with --dtype bfloat16, or "
    "with --engine vllm, where gpu_memory_utilization is the share that it takes."
)


def make_engine(args: EvaluationArguments) -> Engine:
    common = dict(revision=args.revision, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    try:
        with usage_errors(ValueError, ImportError):  # no vLLM
            if args.engine == "vllm":
                return VLLMEngine(
                    args.model,
                    tensor_parallel_size=args.tensor_parallel_size,
                    gpu_memory_utilization=args.gpu_memory_utilization,
                    seed=args.seed,
                    **common,
                )
            return TransformersEngine.load(args.model, batch_size=args.batch_size, **common)
    except OSError as error:  # no such model
        raise from_hub("model", args.model, error) from error


def evaluate(args: EvaluationArguments) -> dict[str, dict[str, Any]]:
    """Run the benchmarks, write the results after each of them, and return the results."""
    folder = Path(args.output)
    engine = make_engine(args)
    conversational = engine.tokenizer.chat_template is not None
    runs = {}
    for name in args.benchmarks:
        with usage_errors(ValueError, OSError, ImportError):  # no such file, column or option, or no hub
            problems = load_benchmark(
                name,
                data_dir=args.data_dir,
                limit=args.limit,
                seed=args.seed,
                conversational=conversational,
                dataset_kwargs=args.options_of(name),
            )
            part_folder = folder / name.replace("/", "-")
            runs[name] = part_folder, problems
            # Those of all benchmarks, before the first is sampled
            check_settings(part_folder, args.settings() | {"problems": fingerprint(problems)})

    results = {}
    for name, (part_folder, problems) in runs.items():
        scorer = scorer_of(name)
        rows = evaluate_problems(
            problems,
            named_scorer(scorer),
            engine,
            num_samples=args.k,
            sampling=args.sampling,
            seed=args.seed,
            chunk_size=args.chunk_size,
            chat_template_kwargs=args.chat_template_kwargs,
            folder=part_folder,
            progress=name,
        )
        results[name] = summarize(rows, args.k, with_votes=scorer != "code")
        write_results(folder, results)
    return results


@memory_advice(MEMORY_ADVICE)
def main() -> None:
    try:
        args = parse(sys.argv[1:])
        results = evaluate(args)
    except UsageError as error:
        raise SystemExit(f"evaluate.py: error: {one_line(error)}") from None
    print((Path(args.output) / "results.md").read_text(encoding="utf-8"))
    if args.k > 1:
        picture = pass_at_k_curve(results, Path(args.output) / "pass_at_k.png")
        print(f"pass@k drawn in {picture}")
    print(f"completions and results in {args.output}")


if __name__ == "__main__":
    main()
