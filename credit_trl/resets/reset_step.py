"""Choose the step that a failed completion is reset to: the first error, a step before it, or a random one (RRPO)."""

from typing import NamedTuple


class Reset(NamedTuple):
    """Say where a completion is restarted: steps 1 .. step - 1 are its prefix."""

    step: int  # number of the step, from 1
    fallback: bool  # True where the step was drawn at random


def choose_reset(first_error: int | None, num_steps: int, *, uniform: float, reset_offset: int = 0) -> Reset:
    """Return the step to reset to: `reset_offset` steps before the first error, at least 1.

    Args:
        first_error: 1-based step of the first error. For None or a step that does not exist, the reset step is drawn
            uniformly from all steps, and the offset does not apply.
        num_steps: number of steps of the failed completion. One without steps is regenerated from its beginning.
        uniform: random number in [0, 1) that decides a random step (`Seed.uniform`).
        reset_offset: how many steps earlier than the error to reset, 0 for the error itself.

    Raises:
        ValueError: `uniform` or `reset_offset` out of range.
    """
    if not 0 <= uniform < 1:
        raise ValueError(f"uniform must be in [0, 1), got {uniform}")
    if reset_offset < 0:
        raise ValueError(f"reset_offset must be at least 0, got {reset_offset}: a prefix with the error would be kept")
    if first_error is None or not 1 <= first_error <= num_steps:
        return Reset(1 + int(uniform * num_steps), fallback=True)
    return Reset(max(first_error - reset_offset, 1), fallback=False)
