"""SRPO with S-trace: reset groups whose continuations carry a trace, which starts after the prefix."""

from dataclasses import dataclass

from .resets.config import SRPOConfig
from .resets.trainer import SRPOTrainer
from .traces.s_trace import STraceConfig, STraceTrainer


@dataclass
class SRPOTraceConfig(SRPOConfig, STraceConfig):
    """The fields, defaults and refusals of `SRPOConfig` and of `STraceConfig`."""


class SRPOTraceTrainer(SRPOTrainer, STraceTrainer):
    """`SRPOTrainer` whose ratios are S-trace's: tokens of the kept prefix neither carry nor decay a trace."""

    config_class: type[SRPOTraceConfig] = SRPOTraceConfig  # type: ignore[assignment]
    args: SRPOTraceConfig
    _tag_names = ["trl", "srpo", "s-trace"]
    _name = "SRPO-S-trace"
