"""Make the tables of `docs/evidence/cost.md`."""

from collections.abc import Iterable, Sequence

from .markdown import interval, stored, table, title

FORMS = ("ours", "matrix", "loop")


def kernels_cpu() -> str:
    """Return time and memory of the trace kernels on a CPU, beside a matrix and a loop."""
    rows = {(row["kernel"], row["T"], row["form"]): row for row in stored("cost/trace_kernels_cpu.json")["rows"]}

    def cell(row: dict) -> str:
        times = "" if row["form"] == "ours" else f" ({row['times_ours']:,.0f} times)"
        return f"{_milliseconds(row['median_ms'])}{times}, {row['peak_mib']:.0f} MiB"

    return table(
        ("kernel", "tokens", "ours", "T x T matrix", "Python loop over tokens"),
        [
            (kernel, f"{tokens:,}", *(cell(rows[kernel, tokens, form]) for form in FORMS))
            for kernel in ("recent", "both")
            for tokens in (1024, 4096)
        ],
    )


def kernels_gpu() -> str:
    """Return time and memory of the trace kernels on one H200, beside PyTorch's operations and a matrix."""
    rows = {(row["kernel"], row["T"], row["form"]): row for row in stored("cost/fused_h200.json")["kernels"]}

    def cell(row: dict) -> str:
        size, unit = (row["peak_mib"] / 1024, "GiB") if row["peak_mib"] >= 1024 else (row["peak_mib"], "MiB")
        return f"{_milliseconds(row['median_ms'])}, {size:.{int(size < 1)}f} {unit}"

    return table(
        ("kernel", "tokens", "ours", "the GPU's time in it", "PyTorch's operations", "matrix"),
        [
            (
                kernel,
                f"{tokens:,}",
                cell(rows[kernel, tokens, "ours"]),
                f"{rows[kernel, tokens, 'ours']['gpu_ms']:.2f} ms",
                *(cell(rows[kernel, tokens, form]) for form in ("operations", "matrix")),
            )
            for kernel in ("recent", "both")
            for tokens in (256, 512, 1024, 2048, 4096, 8192, 16384)
        ],
    )


def _milliseconds(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:,.0f} ms"


def operations() -> str:
    """Return how many operations the traces add to an update on the testbed, and how often they wait."""
    steps = stored("cost/operations.json")["steps"]
    return table(
        ("method", "operations added", "waits added"),
        [(title(step["method"]), str(step["added"]), str(step["added_waits"])) for step in _without_grpo(steps)],
    )


def updates_135m() -> str:
    """Return the time of an update over GRPO's at SmolLM2-135M's size, on one H200."""
    return table(
        ("method", "time divided by GRPO's", "of single processes"),
        [
            (title(row["method"]), f"{row['update_ratio']:.3f}", ", ".join(f"{r:.3f}" for r in row["process_ratios"]))
            for row in stored("cost/update_step_smollm2_135m_h200.json")["rows"]
        ],
    )


def updates_1_7b() -> str:
    """Return the time of an update over GRPO's at Qwen3-1.7B's size, on one H200."""
    return table(
        ("method", "time divided by GRPO's"),
        [
            (title(row["method"]), f"{row['update_ratio']:.3f}")
            for row in _without_grpo(stored("cost/update_step_qwen3_1.7b_h200.json")["rows"])
        ],
    )


def steps_cpu() -> str:
    """Return the time of a training step over GRPO's on the testbed, generation included."""
    return table(
        ("method", "wall time", "CPU time"),
        [
            (title(row["method"]), *(interval([row[f"{kind}_ratio"], *row[f"{kind}_quartiles"]]) for kind in _KINDS))
            for row in _without_grpo(stored("cost/step_overhead_cpu.json")["rows"])
        ],
    )


def resets_cpu() -> str:
    """Return time and tokens of reset groups over GRPO's on the testbed."""
    return table(
        ("method", "generated tokens", "localization tokens a step", "wall time", "CPU time"),
        [
            (
                title(row["method"]),
                f"{row['generated tokens ratio'][0]:.2f}",
                f"{row['localization_tokens']:.0f}",
                *(interval(row[f"{kind} ratio"], digits=2) for kind in _KINDS),
            )
            for row in _without_grpo(stored("cost/reset_cost_testbed_cpu.json")["rows"])
        ],
    )


def reset_phases() -> str:
    """Return where the CPU time of a step with reset groups goes on the testbed, beside GRPO and an earlier version."""
    rows = []
    for row in stored("cost/reset_phases_testbed_cpu.json")["rows"]:
        sampling = [row.get(f"cpu sampling, {phase}", 0) for phase in ("base", "localization", "continuations")]
        parts = [*sampling, row["cpu rest of the rollout"], row["cpu update"]]
        over = interval(row["cpu ratio"], digits=2)
        rows.append((title(row["method"]), *(f"{1000 * seconds:.0f} ms" for seconds in parts), over))
    header = ("method", "base group", "localization", "continuations", "rest of the rollout", "update")
    return table((*header, "whole step, divided by GRPO's"), rows)


def resets_vllm() -> str:
    """Return time and tokens of a step with reset groups over GRPO's on one H200 with vLLM."""
    rows = []
    for name, method in stored("cost/reset_step_vllm_h200.json")["methods"].items():
        seconds, ratio, tokens = (
            interval([median, low, high], digits=2)
            for low, median, high in (method["quartiles"], method["quartiles_over_grpo"], method["tokens_over_grpo"])
        )
        rows.append((title(name), seconds, *(("1", "1") if name == "grpo" else (ratio, tokens))))
    return table(("method", "seconds a step", "divided by GRPO's", "generated tokens, divided by GRPO's"), rows)


def phases_vllm() -> str:
    """Return the seconds of a step that each phase of the rollout takes on one H200 with vLLM."""
    methods = stored("cost/reset_step_vllm_h200.json")["methods"]
    return table(
        ("method", "base group", "localization", "continuations"),
        [
            (
                title(name),
                *(f"{phases[f'reset/seconds_{phase}']:.2f} s" for phase in ("base", "localization", "suffixes")),
            )
            for name in ("rrpo", "srpo")
            for phases in [methods[name]["median_phases"]]
        ],
    )


def prefix_cache() -> str:
    """Return what vLLM's prefix cache saves of the continuations, on a CPU."""
    cases = {"testbed": "testbed, 32 continuations", "smollm2": "SmolLM2-135M, 4 continuations"}
    return table(
        (
            "case",
            "tokens of prompts and prefixes",
            "found in the cache",
            "generated tokens",
            "time with it over without",
        ),
        [
            (
                cases[row["case"]],
                f"{row['prompt_and_prefix_tokens']:,}",
                f"{row['hit_rate']:.0%}",
                f"{row['generated_tokens']:,.0f}",
                interval([row["ratio"], *row["quartiles"]], digits=2),
            )
            for row in stored("cost/prefix_cache_cpu.json")["rows"]
        ],
    )


def plan_accuracy() -> str:
    """Return the planner's memory over what training holds, and how much that is."""
    rows = []
    for name, case in stored("cost/plan_accuracy_cpu.json")["cases"].items():
        measured = case["MiB of tensors, measured"]
        cells = (f"{ratio:.2f} (of {measured[part]:,.0f} MiB)" for part, ratio in case["planned over measured"].items())
        resident = f"{case['planned peak over resident']:.2f} (of {case['MiB resident, measured']:,.0f} MiB)"
        rows.append((name, *cells, resident))
    header = ("run", "generation, tensors", "backward, tensors", "optimizer step, tensors", "peak, resident memory")
    return table(header, rows)


_KINDS = ("wall", "cpu")


def _without_grpo(rows: Iterable[dict]) -> Sequence[dict]:
    return [row for row in rows if row["method"] != "grpo"]
