"""Make the tables of `docs/reference/` and the README's table of methods, from the code."""

import html
import json
import re
from dataclasses import Field, fields
from typing import Any

from credit_trl import GRPOLambdaConfig, SRPOConfig, STraceConfig
from credit_trl.cli.methods import METHODS
from credit_trl.resets.config import RESET_FIELDS
from credit_trl.traces.config import TRACE_FIELDS, TraceConfig

from .markdown import table


def trace_fields() -> str:
    """Return the fields that the trace trainers add: the defaults of either method, type, meaning."""
    methods = [{field.name: field for field in fields(config)} for config in (STraceConfig, GRPOLambdaConfig)]
    family = {field.name: field for field in fields(TraceConfig)}
    return table(
        ("field", "`STraceConfig`", "`GRPOLambdaConfig`", "type", "meaning"),
        [
            (f"`{name}`", *(_default(of[name]) for of in methods), _type(TraceConfig, name), _meaning(family[name]))
            for name in TRACE_FIELDS
        ],
    )


def reset_fields() -> str:
    """Return the fields that `SRPOConfig` adds: default, type, meaning."""
    added = {field.name: field for field in fields(SRPOConfig)}
    return table(
        ("field", "default", "type", "meaning"),
        [(f"`{name}`", _default(added[name]), _type(SRPOConfig, name), _meaning(added[name])) for name in RESET_FIELDS],
    )


def _default(field: Field) -> str:
    return json.dumps(field.default) if isinstance(field.default, str) else str(field.default)


def _type(config: type, name: str) -> str:
    """Return a field's type, a choice of texts by its texts; `|` would end a table's cell."""
    annotation = config.__annotations__[name]  # a parser of the command line changes the field's own `type`
    written = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    choice = re.fullmatch(r"typing\.Literal\[(.*)\]", written)
    return choice[1].replace("'", '"').replace(", ", " or ") if choice else written.replace(" | ", " or ")


def _meaning(field: Field) -> str:
    """Return a field's help text as Markdown, with links to the papers that it names."""
    text = html.escape(field.metadata["help"], quote=False)
    return re.sub(r"\((?:arXiv )?(\d{4}\.\d{5})\)", r"([\1](https://arxiv.org/abs/\1))", text)


def methods(*names: str) -> str:
    """Return the methods of the command line in three columns; all of them without names."""
    return table(
        ("method, and its name for `--method`", "trainer", "credit of a token"),
        [
            (
                f"{METHODS[name].title}, `{name}` ([paper](https://arxiv.org/abs/{METHODS[name].paper}))",
                f"`{METHODS[name].trainer.__name__}`{_option(METHODS[name].options)}",
                METHODS[name].description,
            )
            for name in names or METHODS
        ],
    )


def _option(options: dict[str, Any]) -> str:
    return "".join(f", `{name}={json.dumps(value)}`" for name, value in options.items() if len(options) == 1)
