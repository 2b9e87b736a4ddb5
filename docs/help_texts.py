"""Griffe extension: a configuration's field is documented by its help text, and shown with its default alone."""

import ast
from typing import Any

import griffe


class HelpTexts(griffe.Extension):
    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **kwargs: Any) -> None:
        call = getattr(node, "value", None)
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "field":
            return
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "default" in given and isinstance(given.get("metadata"), ast.Dict):
            metadata = given["metadata"]
            items = zip(metadata.keys, metadata.values, strict=True)
            text = next(value for key, value in items if isinstance(key, ast.Constant) and key.value == "help")
            if not isinstance(text, ast.Constant):  # put together at run time, for the command line alone
                return
            attr.docstring = griffe.Docstring(text.value, parent=attr)
            attr.value = ast.unparse(given["default"])
