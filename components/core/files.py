"""Files as every stage reads and writes them: written aside and renamed, so that a file that exists is whole."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.core.errors import UserError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_DISK_WORDS = (
    "No space left",
    "File too large",
    "Disk quota exceeded",
    "disk is full",
    "PytorchStreamWriter",
)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` when the block succeeds and vanishes when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the file system has none or another disk begins."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)


def publish_folder(folder: Path, place: Path) -> None:
    """Make `place` hold the files of `folder`, which stays as it is, so that a killed stage can publish again."""
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, partial, copy_function=link_or_copy)
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that a file could not be written to its end.

    Libraries that write in C++ or Rust raise errors of their own, which have the system's words in their text.
    """
    return getattr(error, "errno", None) in FULL_DISK or any(words in str(error) for words in FULL_DISK_WORDS)


def require_file(path: Path) -> None:
    """Raises UserError, with the commands that make it, when the file is not there."""
    if not path.is_file():
        raise UserError(f"{path}: not found; `dvc repro` makes it, `dvc pull` fetches it")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON; its keys keep their order."""
    with atomic_write(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def json_text(value: Mapping[str, Any]) -> str:
    """The text that write_json writes. NaN and infinities are an error of the caller."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError when the file is not there."""
    require_file(path)
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the named columns of the rows, with a header."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file that write_csv wrote. Raises UserError when it is not there."""
    require_file(path)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys: {"score": {"dtype": x}} -> {"score.dtype": x}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
