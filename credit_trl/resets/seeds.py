"""Draw untrained completions until enough of them have failed to be cut."""

from collections.abc import Callable

from ..generation.samples import Sample

Draw = Callable[[list[int]], tuple[list[Sample], list[list[bool]]]]


def draw_seeds(
    draw: Draw, *, num_prompts: int, wanted: int, max_attempts: int, rank: int = 0, processes: int = 1
) -> tuple[list[list[Sample]], list[list[bool]]]:
    """Draw a completion for every prompt that lacks a failure, round by round, at most `max_attempts` rounds.

    A process with fewer such prompts than others also draws for prompts that lack none and drops those completions:
    so all processes generate and score equally many rows, and no prompt's seeds depend on other prompts.

    Args:
        draw: function that samples a completion for each of this process's prompts, given by number. It returns
            these completions and, for every process, which of the completions drawn in the same call failed.
        num_prompts: number of prompts of a process.
        wanted: number of failures that each prompt needs.

    Returns:
        The completions of each of this process's prompts; and for each prompt of all processes, which completions
        failed.
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
