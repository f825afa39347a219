"""Writes docs/parameters.md from the settings' own help texts and from dvc.yaml: python docs/parameters.py"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from components.core.settings.pipeline import Settings

PAGE = Path(__file__).with_suffix(".md")
PIPELINE = Path(__file__).parents[1] / "dvc.yaml"

HEAD = """\
# Parameters

Every key of `params.yaml`. This page is written by `python docs/parameters.py` from the help texts in
`components/core/settings/` and from `dvc.yaml`; a test compares them. An unknown key is an error.

A stage runs again when a block that it reads changes, and when the default values of that block change. `NAME` stands
for a name that you choose: letters, digits, `-` and `_`, beginning with a letter or digit.
"""


def parameter_page() -> str:
    """The whole page: a section for each block, with its purpose, the stages that read it and a table of its keys."""
    readers = _readers()
    return HEAD + "".join(_section(name, field, readers) for name, field in Settings.model_fields.items())


def _section(name: str, field: FieldInfo, readers: dict[str, list[str]]) -> str:
    block = field.alias or name
    read_by = ", ".join(readers.get(block, ["the flow, no stage"]))
    head = ["", f"## {block}", "", f"{_purpose(name, field)} Read by: {read_by}.", ""]
    return "\n".join(
        [*head, "| key | type | default | meaning |", "| --- | --- | --- | --- |", *_rows(block, field), ""]
    )


def _purpose(name: str, field: FieldInfo) -> str:
    """What the block is for: its own help text, or the first line of the module that defines its settings."""
    if name == "iterations":  # its module is that of the whole file
        return "The chain of iterations, one line each."
    if field.description:
        return field.description.strip()
    (model, _), *_ = _blocks(field.annotation)
    text = str(sys.modules[model.__module__].__doc__).splitlines()[0].rpartition("`: ")[2]
    return text[0].upper() + text[1:]


def _readers() -> dict[str, list[str]]:
    """Block -> the stages of dvc.yaml that read it, with the key where it is one alone."""
    readers: dict[str, list[str]] = {}
    for stage, definition in YAML(typ="safe").load(PIPELINE.read_text(encoding="utf-8"))["stages"].items():
        for key in definition.get("do", definition).get("params", ()):
            key = key.replace(".${key}", ".NAME")
            block, only, _ = key.partition(".")
            readers.setdefault(block, []).append(f"`{stage}`" + (f" (`{key}` only)" if only else ""))
    return readers


def _rows(key: str, field: FieldInfo) -> Iterator[str]:
    blocks = _blocks(field.annotation)
    for block, suffix in blocks:
        for name, inner in block.model_fields.items():
            yield from _rows(f"{key}{suffix}.{inner.alias or name}", inner)
    if not blocks:
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        meaning = field.description or "Chooses this form of the block."
        yield f"| `{key}` | {_type(field.annotation)} | {default} | {' '.join(meaning.split())} |"


def _blocks(annotation: Any) -> list[tuple[type[BaseModel], str]]:
    """The blocks below a key, each with what stands between: nothing, a user's name, or the kind of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, "")]
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return [(block, ".NAME") for block, _ in _blocks(arguments[1])]
    if get_origin(annotation) is Annotated:
        return _blocks(arguments[0])
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
    if get_origin(annotation) is dict:
        return f"mapping of names to {_type(get_args(annotation)[1])}s"
    if issubclass(annotation, BaseModel):
        return f"block ({get_args(annotation.model_fields['kind'].annotation)[0]})"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
    return names[annotation]


if __name__ == "__main__":
    PAGE.write_text(parameter_page(), encoding="utf-8")
