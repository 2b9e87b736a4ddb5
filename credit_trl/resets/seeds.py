"""Draw untrained completions until enough of them have failed to be cut."""

from collections.abc import Callable

from ..generation.samples import Sample

Draw = Callable[[list[int]], tuple[list[Sample], list[list[bool]]]]


def draw_seeds(
    draw: Draw, *, num_prompts: int, wanted: int, max_attempts: int, rank: int = 0, processes: int = 1
) -> tuple[list[list[Sample]], list[list[bool]]]:
    """Draw a round for all prompts that lack a failure, until none does or `max_attempts` rounds were drawn.

    A process with fewer prompts that lack one draws for others too and drops what comes, so that all processes have
    equally many rows to generate and score, and no prompt's seeds depend on other prompts.

    Args:
        draw: samples a completion for each of this process's prompts that it is given by number. Returns the
            completions, and for every process which of those that it drew in the same call failed.
        num_prompts: of a process.
        wanted: failures for each prompt.

    Returns:
        The completions of this process's prompts, and which completions failed of all processes' prompts.
    """
    failed: list[list[bool]] = [[] for _ in range(num_prompts * processes)]
    candidates: list[list[Sample]] = [[] for _ in range(num_prompts)]
    for _ in range(max_attempts):
        lacking: list[list[int]] = [[] for _ in range(processes)]
        for prompt, outcomes in enumerate(failed):
            if sum(outcomes) < wanted:
                lacking[prompt // num_prompts].append(prompt)
        most = max(map(len, lacking))
        if most == 0:
            break
        own = [prompt % num_prompts for prompt in lacking[rank]]
        samples, outcomes_of = draw((own + [prompt for prompt in range(num_prompts) if prompt not in own])[:most])
        for prompts, outcomes in zip(lacking, outcomes_of, strict=True):
            for prompt, outcome in zip(prompts, outcomes, strict=False):
                failed[prompt].append(outcome)
        for prompt, sample in zip(own, samples, strict=False):
            candidates[prompt].append(sample)
    return candidates, failed
