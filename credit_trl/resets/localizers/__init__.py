"""Find first errors with another model than the policy: a process reward model, or a judge on a server."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from huggingface_hub.errors import HFValidationError
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from ..localization import Localizer
from .chat import ChatLocalizer
from .prm import PRMLocalizer

if TYPE_CHECKING:
    from ..config import SRPOConfig

__all__ = ["ChatLocalizer", "PRMLocalizer", "make_localizer"]


def make_localizer(args: "SRPOConfig", accelerator: Accelerator, function: Localizer | None = None) -> Localizer:
    """Return `function`, or the localizer that `args` names: a process reward model is loaded whole onto the device.

    Raises:
        ValueError: a model that cannot be loaded; `localizer_kwargs` that the localizer does not know or refuses.
    """
    if function is not None:
        return function
    options: dict[str, Any] = dict(args.localizer_kwargs or {})  # type: ignore[arg-type]  # checked: no string
    if args.localizer == "prm":
        _check_names(PRMLocalizer, options)
        with _whole_models(accelerator):
            given: dict[str, Any] = {"device": accelerator.device, "step_delimiter": args.step_delimiter}
            try:
                return PRMLocalizer(args.localizer_model, **given | options)  # type: ignore[arg-type]  # checked: no None
            except (OSError, HFValidationError) as error:
                raise ValueError(
                    f"localizer_model={args.localizer_model!r} cannot be loaded: give a folder with a model and its "
                    f"tokenizer, or a name on the hub, in SRPOConfig. {error}"
                ) from error
    if args.localizer == "chat":
        if "api_key" in options:
            raise ValueError(
                "localizer_kwargs: api_key would be saved with the arguments. Leave it out, and set the environment "
                "variable OPENAI_API_KEY, which the openai package reads. It is a field of SRPOConfig."
            )
        _check_names(ChatLocalizer, options)
        given = {} if args.localization_template is None else {"template": args.localization_template}
        return ChatLocalizer(args.localizer_model, **given | options)  # type: ignore[arg-type]  # checked: no None
    return args.localizer  # type: ignore[return-value]  # mypy does not see what is left of the choices


def _check_names(localizer: type, options: dict[str, Any]) -> None:
    known = [name for name in inspect.signature(localizer).parameters if name not in ("model", "tokenizer")]
    if unknown := sorted(options.keys() - set(known)):
        raise ValueError(
            f"localizer_kwargs: {localizer.__name__} has no {', '.join(unknown)}, only {', '.join(known)}. It is a "
            "field of SRPOConfig."
        )


@contextmanager
def _whole_models(accelerator: Accelerator) -> Iterator[None]:
    """Load models whole while this lasts, also under DeepSpeed's stage 3, which partitions what is loaded."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(plugin.dschf)
