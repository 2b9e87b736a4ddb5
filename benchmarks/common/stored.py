"""Provide the options `--output` and `--plot_only` of benchmarks that store a JSON file, and the command it names."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.measuring import compact_json

Draw = Callable[[dict[str, Any], Path], Any]  # draws a stored result into a file


def own_command(module: str) -> str:
    """Return the command line that `module` was run with, as a shell takes it: what a stored result is measured by."""
    return "python " + shlex.join(["-m", module, *sys.argv[1:]])


def parse_or_draw(parser: argparse.ArgumentParser, draw: Draw) -> argparse.Namespace:
    """Return the arguments of `parser`, to which `--output` and `--plot_only` are added.

    With `--plot_only`, draw the picture of the stored result and exit.
    """
    parser.add_argument(
        "--output", type=Path, help="JSON file to write, with a picture next to it; prints only without it"
    )
    parser.add_argument("--plot_only", action="store_true", help="draw the picture of --output as it is")
    arguments = parser.parse_args()
    if not arguments.plot_only:
        return arguments
    if arguments.output is None:
        parser.error("--plot_only draws what --output holds: give --output")
    draw(json.loads(arguments.output.read_text()), arguments.output.with_suffix(".png"))
    parser.exit()


def store(result: dict[str, Any], output: Path | None, draw: Draw) -> None:
    """Write a result and its picture, unless `output` is None."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(compact_json(result))
        draw(result, output.with_suffix(".png"))
