"""Does a training run fit? The memory of its processes, from configurations alone: `python -m scripts.memory_plan`."""

from scripts.memory_plan.inputs import Launch, load_config, read_launch, read_settings
from scripts.memory_plan.planner import Limits, Plan, make_plan

__all__ = ["Launch", "Limits", "Plan", "load_config", "make_plan", "read_launch", "read_settings"]
