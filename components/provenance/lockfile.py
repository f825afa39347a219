"""Reads dvc.lock: parameters, dependencies and outputs of each stage as DVC recorded them when it last ran."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.core.errors import UserError, first_line
from components.core.files import flatten
from components.core.params import read_params
from components.core.paths import LOCK


@dataclass(frozen=True, slots=True)
class StageEntry:
    """A stage's entry in dvc.lock: parameters by dotted key; dependencies and outputs as path -> MD5."""

    params: dict[str, Any]
    dependencies: dict[str, str]
    outputs: dict[str, str]


def file_md5(file: Path) -> str:
    """DVC's hash of a file: MD5 in hex."""
    return text_md5(file.read_bytes())


def text_md5(content: bytes) -> str:
    """DVC's hash of a file that holds `content`."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def make_entry(blocks: Sequence[str], output: Path) -> StageEntry:
    """The entry that DVC will write for a stage that is still running, from its parameter blocks and its output."""
    params = read_params()
    return StageEntry(flatten({block: params[block] for block in blocks}), {}, {output.as_posix(): file_md5(output)})


def read_entry(stage: str) -> StageEntry:
    """The entry of a stage. Raises UserError when dvc.lock does not have it."""
    for _ in range(20):
        entries = read_lock()
        if stage in entries:
            return entries[stage]
        time.sleep(0.1)  # DVC writes the file in place, so the end of another stage may be half written
    raise UserError(f"{LOCK}: no stage {stage}; `dvc repro` runs it")


def read_lock() -> dict[str, StageEntry]:
    """Stage -> entry; empty while the file is half written. Raises UserError when there is no file."""
    if not LOCK.is_file():
        raise UserError(f"{LOCK}: not found; `dvc repro` writes it")
    try:
        return parse_lock(LOCK.read_text(encoding="utf-8"))
    except UserError:
        return {}


def parse_lock(text: str) -> dict[str, StageEntry]:
    """Stage -> entry, from the text of a dvc.lock. Raises UserError for any other text."""
    try:
        stages = (YAML(typ="safe", pure=True).load(text) or {}).get("stages") or {}
        return {stage: _entry(locked) for stage, locked in stages.items()}
    except (YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = getattr(error, "problem", None) or first_line(error)
        raise UserError(
            f"{LOCK}: not a lock file of DVC: {reason}; `git checkout {LOCK}` restores the last committed version"
        ) from error


def _entry(locked: Mapping[str, Any]) -> StageEntry:
    params = {key: value for file in (locked.get("params") or {}).values() for key, value in file.items()}
    dependencies, outputs = (
        {item["path"]: item.get("md5", "") for item in locked.get(kind) or ()} for kind in ("deps", "outs")
    )
    return StageEntry(flatten(params), dependencies, outputs)
