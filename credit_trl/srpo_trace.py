"""Join SRPO with S-trace: reset groups whose continuations carry a trace, which starts after the prefix."""

from dataclasses import dataclass

from .resets.config import SRPOConfig
from .resets.trainer import SRPOTrainer
from .traces.s_trace import STraceConfig, STraceTrainer


@dataclass
class SRPOTraceConfig(SRPOConfig, STraceConfig):
    """Hold the fields, defaults and refusals of `SRPOConfig` and of `STraceConfig`, which share none but TRL's."""


class SRPOTraceTrainer(SRPOTrainer, STraceTrainer):
    """Train reset groups with S-trace's ratios: tokens of the kept prefix neither carry nor decay a trace.

    Arguments and errors are those of `SRPOTrainer` and of `STraceTrainer`.
    """

    config_class: type[SRPOTraceConfig] = SRPOTraceConfig  # type: ignore[assignment]
    args: SRPOTraceConfig
    _tag_names = ["trl", "srpo", "s-trace"]
    _name = "SRPO-S-trace"
