"""The help of `train.py`: what is ours first, and the many options of TRL and transformers last."""

import argparse
import shutil
from collections.abc import Iterable
from typing import Any

from trl import TrlParser

from .methods import METHODS

USAGE = "python train.py [--method METHOD] [--config FILE.yaml] [--OPTION VALUE ...]"
DESCRIPTION = """\
Train a language model with reinforcement learning from verifiable rewards, and finer credit than GRPO's.

  python train.py
      S-trace on the testbed: a tiny model and its arithmetic, minutes on a CPU (recipes/testbed.yaml)
  python train.py --method grpo
      the same with plain GRPO, to compare
  python train.py --config recipes/qwen3_1.7b.yaml
      Qwen3-1.7B on mathematics, on a GPU
  accelerate launch --config_file accelerate_configs/cpu.yaml train.py --config recipes/smollm2_cpu.yaml
      a real pretrained model on word problems, on a CPU

--config FILE.yaml holds any of the options below as `option: value`; what the command line says overrides it. Under
`method_options` it holds options of some methods only, which the others pass over.
Options that are true or false take either as their VALUE. The options of the method are those of --method; name another
one before --help to see its own.
Results go to --output_dir: the model, learning_curve.png and trainer_state.json with everything that was logged."""


def described() -> str:
    """Return the description with the list of methods."""
    methods = [f"  {name:14}{method.title} (arXiv {method.paper})" for name, method in METHODS.items()]
    return "\n".join([DESCRIPTION, "", "The methods:", *methods])


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the defaults, keep the description's line breaks, and name an option once and without a long list."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=8, width=min(shutil.get_terminal_size().columns, 120))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        values = "|".join(map(str, action.choices or ()))
        if not 0 < len(values) <= 80:  # the name says as much as a list that nobody reads
            values = "VALUE ..." if action.nargs == "+" else "VALUE"
        return f"{action.option_strings[0]} {values}"


class Parser(TrlParser):
    """Parse options into the dataclasses `groups`, and show them in sections of the help."""

    def __init__(self, groups: Iterable[Any], sections: dict[str, list[str]]):
        self.sections = sections  # title -> names of options; the first section that names an option shows it
        super().__init__(groups, usage=USAGE, description=described(), formatter_class=HelpFormatter)

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        # `--no_x` is the switch of `--x`, which takes `false` as well.
        left = {action.dest: action for action in reversed(self._actions) if action.dest != "help"}
        for title, names in self.sections.items():
            formatter.start_section(title)
            formatter.add_arguments([left.pop(name) for name in names if name in left])
            formatter.end_section()
        return formatter.format_help()
