"""`--set KEY=VALUE`: change params.yaml, comments kept, after the result has been checked as a whole."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.core.errors import UserError
from components.core.files import atomic_write
from components.core.params import check_settings, load_settings
from components.core.paths import PARAMS
from components.core.settings.pipeline import Settings


def set_parameters(assignments: Sequence[str], check: Callable[[Settings], None]) -> Settings:
    """The settings with the assignments made, and written to params.yaml if there are any.

    Raises UserError, and writes nothing, for an assignment that is none, an unknown key, an impossible value, and
    whatever else `check` refuses.
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
    settings = check_settings(YAML(typ="safe", pure=True).load(text.getvalue()), "--set")
    check(settings)
    with atomic_write(PARAMS) as beside:
        beside.write_text(text.getvalue(), encoding="utf-8")
    for change in changes:
        print(f"{PARAMS}: {change}")
    return settings


def _assign(document: Any, assignment: str) -> str:
    """Make one assignment in the loaded document; returns what changed, for people."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UserError(f"--set {assignment}: expected KEY=VALUE, such as select.ratio=0.1")
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise UserError(f"--set {assignment}: {text!r} is not a YAML value") from None
    *blocks, last = key.split(".")
    block = document
    for number, name in enumerate(blocks):
        if not isinstance(block, dict) or name not in block:
            raise UserError(f"--set {assignment}: no block {'.'.join(blocks[: number + 1])} in {PARAMS}")
        block = block[name]
    if not isinstance(block, dict):
        raise UserError(f"--set {assignment}: {'.'.join(blocks)} is no block of {PARAMS}")
    before = block.get(last)
    block[last] = value
    return f"{key}: {before} -> {value}" if before != value else f"{key}: {value}, as before"
