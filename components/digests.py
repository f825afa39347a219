"""Digests of what lies on disk: the same bytes under the same names have the same digest, wherever they lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components import tables
from components.scratch import SCRATCH

MEMORY = SCRATCH / "digests.json"
LARGE = 2**24  # bytes; what is smaller is read faster than it is looked up
MOST = 1000  # files that are remembered: the newest


def file_digest(file: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def folder_digest(folder: Path, digest: Callable[[Path], str] = file_digest) -> str:
    """SHA-256 over the files' names relative to `folder` and their digests, in the order of the names, in hex.

    Byte code that Python keeps beside its sources does not count.
    """
    whole = hashlib.sha256()
    files = (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    for name in names:
        whole.update(f"{name}\0{digest(folder / name)}\n".encode())
    return whole.hexdigest()


def known_digest(path: Path) -> str:
    """The digest of a file or folder; large files that are as this function saw them last are not read again.

    For stages, each of which would read the checkpoint twice: it believes device, inode, size and times of a local file
    system, as DVC does. An audit believes none of them.
    """
    return folder_digest(path, _known_file_digest) if path.is_dir() else _known_file_digest(path)


def _known_file_digest(file: Path) -> str:
    status = file.stat()
    if status.st_size < LARGE:
        return file_digest(file)
    seen = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    memory = _read_memory()
    key = f"{status.st_dev}:{status.st_ino}"  # not the name: a folder is renamed when it is complete
    known = memory.pop(key, None)
    if not isinstance(known, dict) or known.get("seen") != seen:
        known = {"seen": seen, "sha256": file_digest(file)}
        # several processes may read one model: each writes beside under a name of its own, and the last one stays
        own = MEMORY.with_name(f"{MEMORY.name}.{os.getpid()}")
        tables.write_json(own, {**dict(list(memory.items())[-MOST:]), key: known})
        own.replace(MEMORY)
    digest: str = known["sha256"]
    return digest


def _read_memory() -> dict[str, Any]:
    try:
        memory = json.loads(MEMORY.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}
