"""`--set KEY=VALUE`: changes params.yaml, keeping its comments, once the whole of the result has been checked."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from ruamel.yaml import YAML

from components.core.errors import UserError
from components.core.files import atomic_write
from components.core.params import check_settings, load_settings, parse_yaml
from components.core.paths import PARAMS
from components.core.settings.pipeline import Settings


def set_parameters(assignments: Sequence[str], check: Callable[[Settings], None]) -> Settings:
    """Make the assignments in params.yaml, print what changed, and return the settings.

    Raises UserError, and writes nothing, for a malformed assignment, an unknown key, an impossible value, and whatever
    else `check` refuses.
    """
    settings = load_settings()
    if not assignments:
        check(settings)
        return settings
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    document = yaml.load(PARAMS.read_text(encoding="utf-8"))
    changes = [_assign(document, assignment) for assignment in assignments]
    text = io.StringIO()
    yaml.dump(document, text)
    settings = check_settings(parse_yaml(text.getvalue(), "--set"), "--set")
    check(settings)
    with atomic_write(PARAMS) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    for change in changes:
        print(f"{PARAMS}: {change}")
    return settings


def _assign(document: Any, assignment: str) -> str:
    """Make one assignment in the loaded document; returns the change as a line for people."""
    key, value = _parse_assignment(assignment)
    *blocks, last = key.split(".")
    block = document
    for number, name in enumerate(blocks, 1):
        if not isinstance(block, dict) or name not in block:
            raise UserError(f"--set {assignment}: no block {'.'.join(blocks[:number])} in {PARAMS}")
        block = block[name]
    if not isinstance(block, dict):
        raise UserError(f"--set {assignment}: {'.'.join(blocks)} is not a block of {PARAMS}")
    before = block.get(last)
    block[last] = value
    return f"{key}: {before} -> {value}" if before != value else f"{key}: {value}, as before"


def _parse_assignment(assignment: str) -> tuple[str, Any]:
    """The dotted key and the value of KEY=VALUE."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UserError(f"--set {assignment}: expected KEY=VALUE, such as select.ratio=0.1")
    try:
        return key, parse_yaml(text, "--set")
    except UserError:
        raise UserError(f"--set {assignment}: {text!r} is not a YAML value") from None
