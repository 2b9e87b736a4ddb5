"""Choose the step that a failed completion is reset to: the first error, a step before it, or a random one (RRPO)."""

from typing import Literal, NamedTuple

Fallback = Literal["random", "first"]


class Reset(NamedTuple):
    """Say where a completion is restarted: steps 1 .. step - 1 are its prefix."""

    step: int  # number of the step, from 1
    fallback: bool  # True where no step was named


def choose_reset(
    first_error: int | None,
    num_steps: int,
    *,
    uniform: float,
    reset_offset: int = 0,
    fallback: Fallback = "random",
) -> Reset:
    """Return the step to reset to: `reset_offset` steps before the first error, at least 1.

    Args:
        first_error: 1-based step of the first error. None or a step that does not exist is replaced as `fallback` says,
            and the offset does not apply.
        num_steps: number of steps of the failed completion. One without steps is regenerated from its beginning.
        uniform: random number in [0, 1) that decides a random step (`Seed.uniform`).
        reset_offset: how many steps earlier than the error to reset, 0 for the error itself.
        fallback: "random" draws uniformly from all steps, "first" takes the first one.

    Raises:
        ValueError: `uniform` or `reset_offset` out of range.
    """
    if not 0 <= uniform < 1:
        raise ValueError(f"uniform must be in [0, 1), got {uniform}")
    if reset_offset < 0:
        raise ValueError(f"reset_offset must be at least 0, got {reset_offset}: a prefix with the error would be kept")
    if first_error is None or not 1 <= first_error <= num_steps:
        return Reset(1 + int(uniform * num_steps) if fallback == "random" else 1, fallback=True)
    return Reset(max(first_error - reset_offset, 1), fallback=False)
