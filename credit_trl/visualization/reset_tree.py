"""Draw what a reset did: a failed completion, its prefix that was kept, and the continuations of that prefix."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .page import Picture, level, mark, section, visible


class Continuation(NamedTuple):
    """Hold a continuation of a kept prefix."""

    text: str  # text after the prefix
    reward: float
    advantage: float  # advantage in its group


def reset_tree(
    steps: Sequence[str],
    reset_step: int,
    continuations: Sequence[Continuation],
    *,
    reward: float | None = None,
    marks: Mapping[int, str] | None = None,
    prefix_trained: bool = False,
    title: str = "Reset",
    note: str = "",
) -> Picture:
    """Draw a failed completion (the seed) as the branch that was dropped, next to those that took its place.

    Empty lines are left out. On a narrow screen the branches stand below the prefix.

    Args:
        steps: the texts of the seed's steps in order.
        reset_step: 1-based; steps 1 .. reset_step - 1 are the kept prefix (`resets.Reset.step`).
        continuations: of the prefix, colored by their advantages.
        reward: of the seed.
        marks: labels by the 1-based step that they stand before, such as `{3: "first error"}`.
        prefix_trained: whether the kept prefix is in the loss too (`train_prefix`).
        title, note: what stands above, plain text.

    Raises:
        ValueError: a `reset_step` or a mark of a step that does not exist.
    """
    labels = dict(marks or {})
    for name, step in (("reset_step", reset_step), *(("marks", step) for step in labels)):
        if not 1 <= step <= len(steps):
            raise ValueError(f"{name} has step {step}, but the completion has {len(steps)} steps, counted from 1")
    shown = [
        f'<span class="step"><b>{number}</b> {mark(labels[number]) if number in labels else ""}{_text(text)}</span>'
        for number, text in enumerate(steps, start=1)
    ]
    kept = "".join(shown[: reset_step - 1]) or '<span class="note">nothing: reset to the beginning</span>'
    kept += f'<span class="step">{mark("reset to here")}</span>'
    result = "" if reward is None else f", reward {reward:.4g}"
    branches = [_box(f"failed from step {reset_step} on{result}: dropped", "".join(shown[reset_step - 1 :]), "dropped")]
    limit = max((abs(continuation.advantage) for continuation in continuations), default=0.0)
    for text, reward_value, advantage in continuations:
        head = f"reward {reward_value:.4g}, advantage {advantage:+.4g}"
        branches.append(
            _box(head, f'<span class="step">{_text(text)}</span>', "", level(advantage, limit, signed=True))
        )
    prefix = ("kept prefix", "") if prefix_trained else ("kept prefix, not trained", "masked")
    tree = (
        f'<div class="tree"><div class="root">{_box(prefix[0], kept, prefix[1])}</div>'
        f'<div class="stem"></div><div class="branches">'
        f'{"".join(f"""<div class="branch">{branch}</div>""" for branch in branches)}</div></div>'
    )
    return Picture(section(title, note, tree), title)


def _text(text: str) -> str:
    lines = [visible(line, spaces=False) for line in text.split("\n") if line.strip()]
    return "<br>".join(lines)


def _box(head: str, content: str, kind: str, color: str = "page") -> str:
    return f'<div class="box {kind}"><div class="head {color}">{head}</div><div class="text">{content}</div></div>'
