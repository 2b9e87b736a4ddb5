"""Compute what the reset trainer logs about a rollout. No model, no TRL."""

from .records import CompletionRecord


def reset_metrics(records: list[CompletionRecord], named: list[bool] | None) -> dict[str, float]:
    """Return the logged figures of a rollout; what has nothing to be averaged over is left out.

    Args:
        records: the trained completions of all processes.
        named: one value for every failed completion that was localized, whether a seed or not: True where the
            localizer named a step. None with random steps, where no localizer is asked.
    """
    seeds = {record.group: record.seed for record in records if record.seed is not None}
    scored = [record for record in records if record.passed is not None]
    prompts, seeded = {record.prompt for record in records}, {record.prompt for record in records if record.seed}
    corrected = {record.group for record in scored if record.passed}
    values: dict[str, list[float]] = {
        "seeded_fraction": [prompt in seeded for prompt in prompts],
        "step": [seed.reset.step for seed in seeds.values()],
        "kept_fraction": [(seed.reset.step - 1) / max(len(seed.steps), 1) for seed in seeds.values()],
        "parse_rate": list(named or ()),
        "base_pass_rate": [bool(record.passed) for record in scored if record.role == "base"],
        "suffix_pass_rate": [bool(record.passed) for record in scored if record.seed is not None],
        "corrected_fraction": [group in corrected for group in seeds],
    }
    metrics = {f"reset/{name}": sum(numbers) / len(numbers) for name, numbers in values.items() if numbers}
    return metrics if named is None else metrics | {"reset/fallback_count": float(named.count(False))}
