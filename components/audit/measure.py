"""Measures files and folders as statements and dvc.lock describe them. Each byte is read once in a process.

A file whose device, inode, size and times are those of an earlier reading by this process is not read again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.errors import UserError
from components.provenance.digests import digest_set, files_of
from components.provenance.recorded import Digests, parse_digests

CHUNK = 2**22  # bytes


@dataclass(frozen=True, slots=True)
class _File:
    """What is known of a file from one reading."""

    sha256: str
    md5: str
    size: int


def measure(path: Path) -> Digests | None:
    """The digests of a file or folder as statements have them; None where there is none."""
    return parse_digests({"digest": digest_set(path, lambda file: _read(file).sha256)}) if path.exists() else None


def measure_as_dvc(path: Path) -> dict[str, Any]:
    """What DVC records of a file or folder: hash, md5, size, and nfiles of a folder; empty where there is none.

    Files that .dvcignore names do not count.
    """
    if path.is_file():
        read = _read(path)
        return {"hash": "md5", "md5": read.md5, "size": read.size}
    if not path.is_dir():
        return {}
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree, sizes = Tree(), []
    for name, file in files_of(path).items():
        if not _is_ignored(file):
            read = _read(file)
            tree.add(tuple(name.split("/")), None, HashInfo("md5", read.md5))
            sizes.append(read.size)
    tree.digest()
    return {"hash": "md5", "md5": tree.oid, "size": sum(sizes), "nfiles": len(sizes)}


def measure_bytes(content: bytes) -> tuple[Digests, dict[str, Any]]:
    """What measure and measure_as_dvc give for a file with this content."""
    sha256, md5 = hashlib.sha256(content), hashlib.md5(content, usedforsecurity=False)
    return Digests(sha256.hexdigest(), None), {"hash": "md5", "md5": md5.hexdigest(), "size": len(content)}


def strangers(folder: Path) -> Iterator[Path]:
    """What is in a folder and has no digest: links to folders or to nothing, pipes, devices."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() and (path.is_symlink() or not path.is_dir()):
            yield path


def _is_ignored(file: Path) -> bool:
    return bool(_repository(Path.cwd()).dvcignore.is_ignored_file(str(file.absolute())))


@functools.cache
def _repository(folder: Path) -> Any:
    from dvc.repo import Repo

    return Repo(str(folder))


def _read(path: Path) -> _File:
    status = path.stat()
    return _read_once(
        path.absolute(), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


@functools.cache
def _read_once(path: Path, *_: int) -> _File:
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    buffer = memoryview(bytearray(CHUNK))
    try:
        with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as beside:
            while count := file.readinto(buffer):
                other = beside.submit(md5.update, buffer[:count])
                sha256.update(buffer[:count])
                other.result()
                size += count
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return _File(sha256.hexdigest(), md5.hexdigest(), size)
