"""Reads params.yaml, checks it against the settings, and explains each mistake in one line that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.core.errors import UserError
from components.core.paths import PARAMS
from components.core.settings.block import NAME
from components.core.settings.pipeline import Settings


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """The file as plain data; raises UserError with the line of a YAML mistake."""
    if not path.is_file():
        raise UserError(f"{path}: not found; run in the project's folder")
    try:
        value = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{path}:{line} not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {type(value).__name__}, expected one block a stage (base_model:, ingest:, ...)")
    return value


def load_settings(path: Path = PARAMS) -> Settings:
    """The checked settings; raises UserError with one line a mistake."""
    return check_settings(read_params(path), str(path))


def check_settings(params: dict[str, Any], origin: str = str(PARAMS)) -> Settings:
    try:
        return Settings.model_validate(params)
    except ValidationError as error:
        # a value that fits no member of a union is one mistake, not one a member
        lines = {".".join(_keys(mistake)): _explain(origin, mistake) for mistake in reversed(error.errors())}
        raise UserError("\n".join(reversed(lines.values()))) from None


def _keys(mistake: Any) -> list[str]:
    """Where the mistake is, as keys of the file: without the marks that pydantic adds for unions and mappings."""
    location = [str(part) for part in mistake["loc"]]
    if location[:1] == ["base_model"] and len(location) > 1:
        del location[1]
    return [part for part in location if part not in ("float", "int", "[key]")]


def _explain(origin: str, mistake: Any) -> str:
    """One line of pydantic's list in the form `params.yaml: select.ratio: 1.5 is neither ...`."""
    location = _keys(mistake)
    key = ".".join(location)
    kind, given = mistake["type"], mistake["input"]
    if kind == "extra_forbidden":
        known = ", ".join(_known_keys(location[:-1]))
        return f"{origin}: {key}: unknown key" + (f"; known here: {known}" if known else "")
    if kind == "missing":
        return f"{origin}: {key}: missing"
    if kind == "value_error":
        return f"{origin}: {key}: {mistake['ctx']['error']}"
    if kind == "union_tag_invalid":
        return f"{origin}: {key}.kind: {given['kind']!r} is none of {mistake['ctx']['expected_tags']}"
    if kind == "string_pattern_mismatch" and mistake["ctx"]["pattern"] == NAME:
        return f"{origin}: {key}: a name is made of letters, digits, - and _, and begins with a letter or digit"
    message = mistake["msg"][0].lower() + mistake["msg"][1:]
    shown = "" if isinstance(given, dict | list) else f" {given!r}:"
    return f"{origin}: {key}:{shown} {message}"


def _known_keys(location: list[str]) -> list[str]:
    """The keys that the block at `location` takes; empty where the block's kind depends on the file."""
    model: Any = Settings
    for part in location:
        fields = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
        annotation = fields.get(part)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return [info.alias or name for name, info in model.model_fields.items()]
