"""What the reset trainer logs about a rollout. No model, no TRL."""

from .groups import GroupPlan, Reset


def reset_metrics(
    plan: GroupPlan, passed: list[bool | None], resets: list[tuple[Reset, int]], named: list[bool]
) -> dict[str, float]:
    """The logged figures of one rollout with reset groups; what has nothing to be averaged over is left out.

    Args:
        plan: of the global batch.
        passed: for every slot of the plan, whether its completion is correct; None where that was not scored.
        resets: for every seed of the plan, its reset point and its number of steps.
        named: for every failed completion that was localized, seed or not, whether a step of it was named.
    """
    base_size, prompts = plan.base_size, len({slot.prompt for slot in plan.slots})
    size = len(plan.slots) // prompts
    scored = list(zip(plan.slots, passed, strict=True))
    values: dict[str, list[float]] = {
        "seeded_fraction": [float(p in {seed.prompt for seed in plan.seeds}) for p in range(prompts)],
        "step": [reset.step for reset, _ in resets],
        "kept_fraction": [(reset.step - 1) / max(steps, 1) for reset, steps in resets],
        "parse_rate": [float(one) for one in named],
        "base_pass_rate": [ok for row, (_, ok) in enumerate(scored) if row % size < base_size and ok is not None],
        "suffix_pass_rate": [ok for slot, ok in scored if slot.seed is not None and ok is not None],
    }
    corrected = {slot.seed for slot, ok in scored if ok}
    values["corrected_fraction"] = [seed in corrected for seed in range(len(plan.seeds))]
    metrics = {f"reset/{name}": sum(each) / len(each) for name, each in values.items() if each}
    return metrics | {"reset/fallback_count": float(named.count(False))}
