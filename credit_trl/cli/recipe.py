"""Read a recipe, the YAML file of `--config`, and say by name what is wrong with it."""

import argparse
import difflib
import re
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from .usage import UsageError

_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", list: "a list", dict: "a mapping"}
# Options that take more kinds of values than the types of their fields say, which a command line needs.
_ALSO = {
    "resume_from_checkpoint": (bool,),  # true: the last checkpoint
    "scale_rewards": (bool,),  # false: "none"
    "fsdp": (bool, list),
    "step_delimiter": (list,),
    "correctness_reward": (int,),
}


class _Loader(yaml.SafeLoader):
    """Load YAML as its users mean it: `1e-5` is a number, and an option that stands twice is an error."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for place, (key, _) in enumerate(node.value):
            if key.value in names[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands there twice", key.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot and a sign in the exponent, and takes 1e-5 for text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_settings(path: str, recipes: Path | None = None) -> dict[str, Any]:
    """Return the mapping that the YAML file at `path` holds.

    Args:
        path: the file.
        recipes: a folder to look in for a file of a similar name where there is no `path`.

    Raises `UsageError` for a file that is not there, is no UTF-8 text, no YAML or no mapping.
    """
    file = Path(path)
    if not file.exists():
        found = [*file.parent.glob("*.y*ml"), *(recipes.glob("*.yaml") if recipes else ())]
        names = difflib.get_close_matches(file.name, [other.name for other in found], n=1)
        meant = next((f"; did you mean {other}?" for other in found if other.name in names), "")
        raise UsageError(f"there is no file {path} in {Path.cwd()}{meant}")
    try:
        settings = _Loader(file.read_text(encoding="utf-8-sig")).get_single_data()
    except OSError as error:
        raise UsageError(str(error)) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no UTF-8 text: save it as UTF-8 ({error})") from error
    except yaml.YAMLError as error:
        tabs = ". YAML takes no tabs: indent with spaces" if r"'\t'" in str(error) else ""
        place = str(error).replace('in "<unicode string>", ', "in ")
        raise UsageError(f"{path} is no valid YAML: {place}{tabs}") from error
    if settings is None:
        raise UsageError(f"{path} is empty: it must hold lines of the form option: value")
    if not isinstance(settings, dict):
        raise UsageError(
            f"{path} must hold a mapping of option: value, and holds a {type(settings).__name__}: write one option a "
            "line, with a space after its colon"
        )
    return {str(name): value for name, value in settings.items()}


def check_values(settings: dict[str, Any], groups: Iterable[type], path: str) -> None:
    """Raise `UsageError`, which names the option, for a value of a type that the field in `groups` does not take.

    Args:
        settings: option -> value, as YAML reads it. Text is left to the parser, which reads numbers from it.
        groups: the dataclasses whose fields are the options.
        path: the file that errors name.
    """
    hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    for name, value in settings.items():
        kinds = _kinds_of(hints.get(name, Any))
        if kinds is None or isinstance(value, str) or type(value) in kinds:
            continue
        if type(value) in _ALSO.get(name, ()) or (type(value) is int and float in kinds):
            continue
        wanted = " or ".join(text for kind, text in _KINDS.items() if kind in kinds)
        message = f"{path}: {name} must be {wanted}, got {'nothing' if value is None else repr(value)}"
        if isinstance(value, bool) and str in kinds:
            message += f". YAML reads no, off, yes and on as {value}: put the word in quotes"
        elif value is None:
            message += ": write a value after its colon, or remove the line"
        elif isinstance(value, int | float) and str in kinds:
            message += f": write '{value}', in quotes"
        elif isinstance(value, float) and value.is_integer():
            message += f": write {value:.0f}"
        raise UsageError(message)


def _kinds_of(hint: Any) -> set[type] | None:
    """Return the types of YAML values that a field with the type `hint` takes, or None where that is not known."""
    if get_origin(hint) in (Union, UnionType):
        parts = [_kinds_of(part) for part in get_args(hint)]
        return None if None in parts else set().union(*parts)  # type: ignore[arg-type]
    if get_origin(hint) is Literal:
        return {type(value) for value in get_args(hint)}
    kind = get_origin(hint) or hint
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {str}
    return {kind} if kind in _KINDS or kind is NoneType else None


def set_defaults(parser: Any, settings: dict[str, Any], groups: Iterable[type], path: str) -> list[str]:
    """Make the values of a recipe the defaults of `parser`, and return its options that the parser does not know."""
    check_values(settings, groups, path)
    return parser.set_defaults_with_config(**settings)


def config_of(argv: list[str], usage: str) -> tuple[str | None, list[str]]:
    """Return the file that `argv` names with `--config`, or None, and the other words."""
    parser = argparse.ArgumentParser(usage=usage, add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    known, rest = parser.parse_known_args(argv)
    return known.config, rest
