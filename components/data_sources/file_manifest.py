"""The files of a local source: path, size and SHA-256 of each, and which file formats are read."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from components.core.errors import UserError
from components.core.files import read_json, write_json
from components.core.paths import PARAMS
from components.core.settings.ingest import FileSource

FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".zst")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a source as it was when the source was listed."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a source by path, and the paths of those that are left out."""

    files: list[ListedFile]
    ignored: list[str]


def list_files(name: str, source: FileSource) -> Manifest:
    """The manifest of the source `name`. In a folder, hidden files are left out, and files of unknown format ignored.

    Raises UserError for a path that does not exist, a file that cannot be read, and a file of unknown format that is
    named directly.
    """
    key, path = f"{PARAMS}: ingest.files.{name}.path", Path(source.path)
    if path.is_file():
        if not is_readable_format(path):
            raise UserError(f"{key}: {path}: unknown ending; expected {', '.join(FORMATS)}, also with .gz or .zst")
        return Manifest([_list_file(path)], [])
    if not path.is_dir():
        raise UserError(f"{key}: {path}: no such file or folder")
    pattern = Path(source.pattern)
    if not pattern.parts or pattern.is_absolute() or ".." in pattern.parts:
        raise UserError(f"{PARAMS}: ingest.files.{name}.pattern: {source.pattern!r} is no glob below {path}")
    try:
        files = sorted(file for file in path.glob(source.pattern) if file.is_file() and not _is_hidden(file, path))
    except ValueError as error:  # such as **x
        raise UserError(f"{PARAMS}: ingest.files.{name}.pattern: {source.pattern!r}: {error}") from error
    return Manifest(
        [_list_file(file) for file in files if is_readable_format(file)],
        [file.as_posix() for file in files if not is_readable_format(file)],
    )


def is_readable_format(path: Path) -> bool:
    """Whether `read_file` reads files with this ending."""
    return format_of(path) in FORMATS


def format_of(path: Path) -> str:
    """The ending that tells the format, without that of a compression: `.jsonl` of `x.jsonl.gz`."""
    uncompressed = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return uncompressed.suffix.lower()


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _list_file(path: Path) -> ListedFile:
    try:
        str(path).encode()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except UnicodeEncodeError as error:
        raise UserError(f"{str(path)!r}: the file's name is not UTF-8; rename it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return ListedFile(path.as_posix(), path.stat().st_size, digest)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest as JSON."""
    write_json(path, asdict(manifest))


def listed_files(manifest: Path) -> list[Path]:
    """The files that a manifest lists. Raises UserError when one of them has changed since."""
    files = []
    for entry in read_json(manifest)["files"]:
        path = Path(entry["path"])
        if not path.is_file() or asdict(_list_file(path)) != entry:
            raise UserError(f"{path}: has changed since its source was listed; run again")
        files.append(path)
    return files
