"""Find first errors with another model than the policy: a process reward model, or a judge on a server."""

import inspect
from typing import TYPE_CHECKING

import torch

from ..localization import Localizer

if TYPE_CHECKING:
    from ..config import SRPOConfig

__all__ = ["ChatLocalizer", "PRMLocalizer", "make_localizer"]


def make_localizer(args: "SRPOConfig", device: torch.device) -> Localizer:
    """Return the localizer that `args` names; a process reward model is loaded onto `device`.

    Raises:
        ValueError: `localizer_kwargs` that the localizer does not know or refuses.
    """
    if args.localizer in ("self", "random"):
        return args.localizer  # type: ignore[return-value]  # mypy does not narrow a union of literals by `in`
    from .chat import ChatLocalizer
    from .prm import PRMLocalizer

    localizer: type = {"prm": PRMLocalizer, "chat": ChatLocalizer}[args.localizer]
    options: dict = dict(args.localizer_kwargs or {})  # type: ignore[arg-type]  # checked to be a dictionary
    known = list(inspect.signature(localizer).parameters)[1:]
    if unknown := options.keys() - set(known):
        raise ValueError(
            f"localizer_kwargs: {localizer.__name__} has no {', '.join(sorted(unknown))}, only {', '.join(known)}. "
            "They are a field of SRPOConfig."
        )
    if args.localizer == "prm":
        options = {"device": device} | options
    return localizer(args.localizer_model, **options)
