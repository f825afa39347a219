"""Digests of what lies on disk: the same bytes under the same names have the same digest, wherever they lie."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_digest(file: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the files' names relative to `folder` and their digests, in the order of the names, in hex.

    Byte code that Python keeps beside its sources does not count.
    """
    whole = hashlib.sha256()
    files = (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    for name in names:
        whole.update(f"{name}\0{file_digest(folder / name)}\n".encode())
    return whole.hexdigest()
