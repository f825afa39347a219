"""Reads dvc.lock: parameters, dependencies and outputs of each stage as DVC recorded them when it last ran."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.core.errors import UserError, first_line
from components.core.files import flatten
from components.core.params import parse_yaml, read_params
from components.core.paths import LOCK


@dataclass(frozen=True, slots=True)
class StageEntry:
    """A stage's entry in dvc.lock: parameters by dotted key; dependencies and outputs as path -> MD5."""

    params: dict[str, Any]
    dependencies: dict[str, str]
    outputs: dict[str, str]
    command: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path of each dependency and output -> what else DVC records of it: hash, md5, size, and nfiles of a folder."""


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
    except (UnicodeDecodeError, UserError):
        return {}


def parse_lock(text: str) -> dict[str, StageEntry]:
    """Stage -> entry, from the text of a dvc.lock. Raises UserError for any other text."""
    remedy = f"`git checkout {LOCK}` restores the last committed version"
    try:
        stages = (parse_yaml(text, f"{LOCK}: not a lock file of DVC") or {}).get("stages") or {}
        return {stage: _entry(locked) for stage, locked in stages.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{LOCK}: not a lock file of DVC: {first_line(error)}; {remedy}") from error
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error


def _entry(locked: Mapping[str, Any]) -> StageEntry:
    params = {key: value for file in (locked.get("params") or {}).values() for key, value in file.items()}
    dependencies, outputs = (
        {item["path"]: item.get("md5", "") for item in locked.get(kind) or ()} for kind in ("deps", "outs")
    )
    files = {item["path"]: item for kind in ("deps", "outs") for item in locked.get(kind) or ()}
    return StageEntry(flatten(params), dependencies, outputs, str(locked.get("cmd", "")), files)
