"""Digests of files and folders: the same bytes under the same names have the same digest, wherever they are.

A folder has two digests. `folder_digest` names a checkpoint in statements, in MLflow's tags and on the command line.
`dir_hash` is in-toto's standard digest of a folder, which other tools can check without this project.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.core.files import write_json
from components.core.paths import SCRATCH

CACHE = SCRATCH / "digests.json"
LARGE = 2**24  # bytes; reading a smaller file is faster than looking it up
MAX_ENTRIES = 1000  # of the cache; the oldest go first
CODE_FOLDERS = ("components", "flows", "conf")  # in them alone byte code comes and goes, and counts in no digest


def file_digest(file: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """Path relative to `folder` -> file, sorted by path; Python's byte code does not count in our own code folders."""
    by_name = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    if _is_code(folder):
        by_name = {name: file for name, file in by_name.items() if "__pycache__" not in file.parts}
    return dict(sorted(by_name.items()))


def _is_code(folder: Path) -> bool:
    """Whether the folder holds code of the project that is the current folder, or of the one that is running."""
    projects = (Path.cwd(), Path(__file__).parents[2])
    return any(folder.absolute().is_relative_to(project / name) for project in projects for name in CODE_FOLDERS)


def folder_digest(folder: Path, digest: Callable[[Path], str] = file_digest) -> str:
    """SHA-256 over the files' paths and digests, in hex: the digest that names a checkpoint."""
    return _combine({name: digest(file) for name, file in files_of(folder).items()})


def dir_hash(file_digests: Mapping[str, str]) -> str:
    """in-toto's `dirHash` of a folder, in hex: SHA-256 over the lines that sha256sum prints, sorted by path.

    The definition is Hash1 of golang.org/x/mod/sumdb/dirhash. In the folder, a shell computes it with
    `find . -type f | cut -c3- | LC_ALL=C sort | xargs -r sha256sum | sha256sum | cut -f1 -d' '`.
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(file_digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def digest_set(path: Path, digest: Callable[[Path], str] = file_digest) -> dict[str, str]:
    """in-toto's DigestSet: `sha256` of a file, or `dirHash` and `iteritFolder` (folder_digest) of a folder."""
    if not path.is_dir():
        return {"sha256": digest(path)}
    file_digests = {name: digest(file) for name, file in files_of(path).items()}
    return {"dirHash": dir_hash(file_digests), "iteritFolder": _combine(file_digests)}


def digest_of(path: Path) -> str:
    """file_digest or folder_digest, computed from every byte."""
    return folder_digest(path) if path.is_dir() else file_digest(path)


def cached_digest(path: Path) -> str:
    """digest_of, except that a large file is not read again while its metadata are unchanged.

    For stages, each of which would read a checkpoint twice. The metadata are device, inode, size, and the times of the
    last change of content and of inode, on a local file system. An audit does not rely on them.
    """
    return folder_digest(path, cached_file_digest) if path.is_dir() else cached_file_digest(path)


def cached_file_digest(file: Path) -> str:
    """cached_digest of a file."""
    status = file.stat()
    if status.st_size < LARGE:
        return file_digest(file)
    seen = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    cache = _read_cache()
    key = f"{status.st_dev}:{status.st_ino}"  # not the path: a folder is renamed when it is complete
    entry = cache.pop(key, None)
    if not isinstance(entry, dict) or entry.get("seen") != seen:
        entry = {"seen": seen, "sha256": file_digest(file)}
        # several processes may digest one model: each writes its own file, and the last one renamed stays
        temporary = CACHE.with_name(f"{CACHE.name}.{os.getpid()}")
        write_json(temporary, {**dict(list(cache.items())[-MAX_ENTRIES:]), key: entry})
        temporary.replace(CACHE)
    digest: str = entry["sha256"]
    return digest


def _combine(file_digests: Mapping[str, str]) -> str:
    lines = (f"{name}\0{digest}\n" for name, digest in file_digests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_cache() -> dict[str, Any]:
    try:
        cache = json.loads(CACHE.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}
