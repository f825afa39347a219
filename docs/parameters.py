"""The README's table of parameters, made of the settings' own help texts: python docs/parameter_table.py"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from components.core.settings.pipeline import Settings


def parameter_table() -> str:
    """Every key, its type, its default and its meaning, as the Markdown table of the README."""
    return "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *_rows(Settings, "")])


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key, annotation = f"{prefix}{field.alias or name}", field.annotation
        for block, suffix in _blocks(annotation):
            yield from _rows(block, f"{key}{suffix}.")
        if not _blocks(annotation):
            default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
            meaning = field.description or "Chooses this form of the block."
            yield f"| `{key}` | {_type(annotation)} | {default} | {meaning.strip()} |"


def _blocks(annotation: Any) -> list[tuple[type[BaseModel], str]]:
    """The blocks below a key, each with what stands between: nothing, a user's name, or the kind of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, "")]
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return [(block, ".NAME") for block, _ in _blocks(arguments[1])]
    kinds = [part for part in arguments if isinstance(part, type) and issubclass(part, BaseModel)]
    if len(kinds) > 1:
        return [(part, f" ({get_args(part.model_fields['kind'].annotation)[0]})") for part in kinds]
    return [(part, "") for part in kinds]


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type(part) for part in get_args(annotation))
    if get_origin(annotation) is list:
        kind = _type(get_args(annotation)[0])
        return f"list of {kind}s" if kind == "number" else f"list of {kind}"
    if issubclass(annotation, BaseModel):
        return f"block ({get_args(annotation.model_fields['kind'].annotation)[0]})"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
    return names[annotation]


if __name__ == "__main__":
    print(parameter_table())
