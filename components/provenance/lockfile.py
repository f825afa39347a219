"""Reads dvc.lock: what DVC recorded of each stage when it last ran."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.core.errors import UserError
from components.core.files import flatten
from components.core.params import read_params
from components.core.paths import LOCK


@dataclass(frozen=True, slots=True)
class StageEntry:
    """What dvc.lock says of a stage: parameters by dotted key; dependencies and outputs, path -> MD5."""

    params: dict[str, Any]
    dependencies: dict[str, str]
    outputs: dict[str, str]


def file_md5(file: Path) -> str:
    """DVC's hash of a file."""
    return text_md5(file.read_bytes())


def text_md5(content: bytes) -> str:
    """DVC's hash of a file with this content."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def make_entry(blocks: Sequence[str], output: Path) -> StageEntry:
    """What dvc.lock will say of the stage that is running now, which depends on these blocks of params.yaml."""
    params = read_params()
    return StageEntry(flatten({block: params[block] for block in blocks}), {}, {output.as_posix(): file_md5(output)})


def read_entry(stage: str) -> StageEntry:
    """Raises UserError when dvc.lock does not have the stage."""
    for _ in range(20):
        entries = read_lock()
        if stage in entries:
            return entries[stage]
        time.sleep(0.1)  # DVC writes the file in place: the end of another stage may just be writing it
    raise UserError(f"{LOCK}: no stage {stage}; `dvc repro` runs it")


def read_lock() -> dict[str, StageEntry]:
    """Stage -> entry; none while the file is half written. Raises UserError when there is no file."""
    if not LOCK.is_file():
        raise UserError(f"{LOCK}: not found; `dvc repro` writes it")
    try:
        return parse_lock(LOCK.read_text(encoding="utf-8"))
    except UserError:
        return {}


def parse_lock(text: str) -> dict[str, StageEntry]:
    """Stage -> entry, from the text of a dvc.lock. Raises UserError when it is not one."""
    try:
        stages = (YAML(typ="safe", pure=True).load(text) or {}).get("stages") or {}
        return {stage: _entry(locked) for stage, locked in stages.items()}
    except (YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = str(getattr(error, "problem", None) or error or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{LOCK}: not a lock file of DVC: {reason}; `git checkout {LOCK}` brings back the last"
        ) from error


def _entry(locked: Mapping[str, Any]) -> StageEntry:
    params = {key: value for file in (locked.get("params") or {}).values() for key, value in file.items()}
    dependencies, outputs = (
        {item["path"]: item.get("md5", "") for item in locked.get(kind) or ()} for kind in ("deps", "outs")
    )
    return StageEntry(flatten(params), dependencies, outputs)
