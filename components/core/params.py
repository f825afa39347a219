"""Reads params.yaml, checks it against the settings, and explains each mistake in one line that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.core.errors import UserError, first_line
from components.core.paths import PARAMS
from components.core.settings.block import NAME
from components.core.settings.pipeline import Settings

AnyBlock = TypeVar("AnyBlock", bound=BaseModel)

LONGEST_SHOWN = 80  # characters of a wrong value that an error repeats


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """The file as plain data. Raises UserError, with the line of a YAML mistake."""
    if not path.is_file():
        raise UserError(f"{path}: not found; run in the project's folder")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {type(value).__name__}, expected one block a stage (base_model:, ingest:, ...)")
    return value


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a YAML text. Raises UserError that begins with `origin`."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{origin}:{line} not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError:
        raise UserError(f"{origin}: not usable YAML: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits, the 31st of February
        raise UserError(f"{origin}: not usable YAML: {first_line(error)}") from error


def load_settings(path: Path = PARAMS) -> Settings:
    """The checked settings; raises UserError with one line per mistake."""
    return check_settings(read_params(path), str(path))


def check_settings(params: dict[str, Any], origin: str = str(PARAMS)) -> Settings:
    """The settings of plain data. Raises UserError with one line per mistake, each beginning with `origin`."""
    return check_block(Settings, params, origin)


def check_block(kind: type[AnyBlock], values: dict[str, Any], origin: str) -> AnyBlock:
    """The block of plain data, which `kind` checks. Raises UserError as check_settings does."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        # a value that fits no member of a union is one mistake, not one per member
        lines = {".".join(_keys(mistake)): _explain(kind, origin, mistake) for mistake in reversed(error.errors())}
        raise UserError(*reversed(lines.values())) from None


def _keys(mistake: Any) -> list[str]:
    """Where the mistake is, as keys of the file: without the marks that pydantic adds for unions and mappings."""
    location = [str(part) for part in mistake["loc"]]
    if location[:1] == ["base_model"] and len(location) > 1:
        del location[1]
    return [part for part in location if part not in ("float", "int", "[key]")]


def _explain(kind: type[BaseModel], origin: str, mistake: Any) -> str:
    """One line of pydantic's list in the form `params.yaml: select.ratio: 1.5 is neither ...`."""
    location = _keys(mistake)
    key = ".".join(location)
    problem, given = mistake["type"], mistake["input"]
    if problem == "extra_forbidden":
        known = ", ".join(_known_keys(kind, location[:-1]))
        return f"{origin}: {key}: unknown key" + (f"; known here: {known}" if known else "")
    if problem == "missing":
        return f"{origin}: {key}: missing"
    if problem == "value_error":
        place = f"{origin}: {key}" if key else origin  # a rule that spans blocks names the key itself
        return f"{place}: {mistake['ctx']['error']}"
    if problem == "union_tag_invalid":
        return f"{origin}: {key}.kind: {given['kind']!r} is none of {mistake['ctx']['expected_tags']}"
    if problem == "string_pattern_mismatch" and mistake["ctx"]["pattern"] == NAME:
        return f"{origin}: {key}: a name is made of letters, digits, - and _, and begins with a letter or digit"
    message = mistake["msg"][0].lower() + mistake["msg"][1:]
    shown = "" if isinstance(given, dict | list) else f" {repr(given)[:LONGEST_SHOWN]}:"
    return f"{origin}: {key}:{shown} {message}"


def _known_keys(kind: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that the block at `location` of `kind` takes; empty where the block's kind depends on the file."""
    model: Any = kind
    for part in location:
        fields = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
        annotation = fields.get(part)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return [info.alias or name for name, info in model.model_fields.items()]
