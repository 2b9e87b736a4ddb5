"""Does a training run fit? Memory of one process, from configurations alone: `python -m scripts.memory_plan --help`."""

import argparse
import os
import sys
import warnings
from typing import Any

from transformers import PretrainedConfig

from scripts.memory_plan.inputs import Launch, load_config, read_launch, read_settings
from scripts.memory_plan.memory import GIB
from scripts.memory_plan.planner import Limits, Plan, gib, make_plan, remedies

DESCRIPTION = """\
Memory of one GPU in GRPO training, from configurations and without weights.

  accelerate launch --config_file accelerate_configs/zero3.yaml train.py --config recipes/qwen3_8b.yaml
  python -m scripts.memory_plan --config_file accelerate_configs/zero3.yaml --config recipes/qwen3_8b.yaml

Every option of TRL's GRPOConfig and ModelConfig overrides the recipe, as for train.py. Leave out the other options of
the launch line. A model is named by its hub name, its folder or a config.json. The exit status is 0 if the run fits,
1 if it does not, and 2 for a mistake."""

GPU_GIB = 79.0  # what an 80 GB GPU (A100, H100) shows as its total
GPU_RESERVE_GIB, CPU_RESERVE_GIB = 4.0, 1.0  # assumed: CUDA context, NCCL and fragmentation; Python with its libraries


def render(plan: Plan, launch: Launch, limits: Limits, what: str) -> str:
    """The plan as a table of GiB, part by phase."""
    names = list(plan.phases)
    parts = list(dict.fromkeys(part for phase in plan.phases.values() for part in phase))
    parts = [part for part in parts if any(phase.get(part) for phase in plan.phases.values())]
    width = max(len(part) for part in parts) + 2
    lines = [what, "", "GiB".ljust(width) + "".join(name.rjust(16) for name in names)]
    for part in parts:
        lines.append(part.ljust(width) + "".join(f"{plan.phases[name].get(part, 0) / GIB:16.2f}" for name in names))
    totals = [sum(plan.phases[name].values()) / GIB for name in names]
    lines.append("total".ljust(width) + "".join(f"{total:16.2f}" for total in totals))
    lines.append("")
    if plan.engine is not None:
        lines.append(
            f"vLLM: {gib(plan.engine.weights)} GiB of weights in its {gib(plan.engine.share)}; the rest caches "
            f"{plan.engine.cache_tokens} tokens"
        )
    if plan.host:
        lines.append(f"offloaded to the memory of each machine: {gib(plan.host)} GiB")
    if plan.rounds_updates_away:
        lines.append(
            "note: 16-bit weights without float32 master weights; at learning rates like 1e-6 nearly all updates are "
            "rounded away. Use --dtype float32, or ZeRO or FSDP2"
        )
    verdict = "fits" if not plan.problems else "does not fit"
    device = "process" if launch.cpu else "GPU"
    lines.append(f"{verdict}: {gib(plan.peak)} of {gib(limits.memory)} GiB a {device}")
    return "\n".join([*lines, *(f"- {problem}" for problem in plan.problems)])


def advise(config: PretrainedConfig, settings: dict[str, Any], launch: Launch, limits: Limits) -> list[str]:
    """The single changes that make the run fit, the mildest of each kind."""
    lines = []
    for kind in remedies(settings, launch, limits):
        for words, changed_settings, changed_launch in kind:
            plan = make_plan(config, changed_settings, changed_launch, limits)
            if not plan.problems:
                lines.append(f"fits with {words} ({gib(plan.peak)} GiB)")
                break
    return lines or ["no single change that is tried here makes it fit; try two of them"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.memory_plan",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config_file", required=True, help="accelerate's configuration, from accelerate_configs/")
    parser.add_argument("--config", help="the recipe, as for train.py")
    parser.add_argument("--model", help="the same as --model_name_or_path")
    parser.add_argument("--method", help="as for train.py; all are planned as GRPO, see docs/guides/scale.md")
    parser.add_argument("--num_processes", "--num_gpus", type=int, help="instead of the configuration's")
    parser.add_argument("--num_machines", type=int, help="instead of the configuration's")
    parser.add_argument("--prompt_length", type=int, default=512, help="tokens of the longest prompt (default 512)")
    parser.add_argument("--memory_gib", type=float, help="of one GPU (default 79), or for one process on CPUs")
    parser.add_argument("--reserve_gib", type=float, help="kept free of tensors (default 4 on GPUs, 1 on CPUs)")
    known, rest = parser.parse_known_args(argv)
    try:
        launch = read_launch(known.config_file, known.num_processes, known.num_machines)
        settings = read_settings(known.config, rest)
        settings["method"] = known.method or settings.get("method")
        settings["model_name_or_path"] = known.model or settings["model_name_or_path"]
        memory = known.memory_gib or (machine_gib() / launch.processes if launch.cpu else GPU_GIB)
        reserve = known.reserve_gib
        if reserve is None:
            reserve = CPU_RESERVE_GIB if launch.cpu else GPU_RESERVE_GIB
        limits = Limits(memory * GIB, reserve * GIB, known.prompt_length)
        config = load_config(settings["model_name_or_path"])
        plan = make_plan(config, settings, launch, limits)
    except (ValueError, OSError) as error:
        print(f"plan: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(render(plan, launch, limits, describe(plan, settings, launch)))
    if plan.problems:
        for line in advise(config, settings, launch, limits):
            print(f"-> {line}")
    return 1 if plan.problems else 0


def describe(plan: Plan, settings: dict[str, Any], launch: Launch) -> str:
    model = plan.model
    trained = "all trained" if not model.frozen else f"{model.trainable / 1e6:.1f} M trained (LoRA)"
    return (
        f"{settings['model_name_or_path']}: {model.total / 1e9:.2f} B parameters, {trained}; {launch.strategy} on "
        f"{launch.processes} process{'es' if launch.processes > 1 else ''}"
    )


def machine_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own, of its own names
    sys.exit(main())
