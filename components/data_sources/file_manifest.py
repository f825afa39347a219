"""Manifests of local sources: path, size and SHA-256 of every file that ingest reads.

Also the list of the file formats that components/data_sources/files.py reads.
"""

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
    """A file of a source, as it was when the source was listed."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a source in the order of their paths, and the paths of the files whose format is unknown."""

    files: list[ListedFile]
    ignored: list[str]


def list_files(name: str, source: FileSource) -> Manifest:
    """The manifest of the source `name`. Hidden files of a folder are in neither list.

    Raises UserError for a path that does not exist, a pattern that is no glob below the folder, a file that cannot be
    read, and a path to a single file of unknown format.
    """
    path = Path(source.path)
    if path.is_dir():
        files = _matching_files(name, path, source.pattern)
    elif not path.is_file():
        raise UserError(f"{PARAMS}: ingest.files.{name}.path: {path}: no such file or folder")
    elif is_readable_format(path):
        files = [path]
    else:
        raise UserError(
            f"{PARAMS}: ingest.files.{name}.path: {path}: unknown extension; "
            f"expected {', '.join(FORMATS)}, each also with .gz or .zst"
        )
    return Manifest(
        [_describe(file) for file in files if is_readable_format(file)],
        [file.as_posix() for file in files if not is_readable_format(file)],
    )


def is_readable_format(path: Path) -> bool:
    """Whether `read_file` can read files with this extension."""
    return format_of(path) in FORMATS


def format_of(path: Path) -> str:
    """The extension that names the format, in lower case and without that of a compression: .jsonl for x.jsonl.gz."""
    uncompressed = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return uncompressed.suffix.lower()


def _matching_files(name: str, folder: Path, pattern: str) -> list[Path]:
    """The files of the folder that match the pattern and are not hidden, sorted. Raises UserError for a bad pattern."""
    key, parts = f"{PARAMS}: ingest.files.{name}.pattern: {pattern!r}", Path(pattern)
    if not parts.parts or parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{key} is no glob below {folder}")
    try:
        return sorted(file for file in folder.glob(pattern) if file.is_file() and not _is_hidden(file, folder))
    except ValueError as error:  # such as **x
        raise UserError(f"{key}: {error}") from error


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _describe(path: Path) -> ListedFile:
    """The file as it is now. Raises UserError when it cannot be read, or JSON cannot hold its name."""
    try:
        str(path).encode()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except UnicodeEncodeError as error:
        raise UserError(f"{str(path)!r}: the file name is not UTF-8; rename the file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return ListedFile(path.as_posix(), path.stat().st_size, digest)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest as JSON."""
    write_json(path, asdict(manifest))


def listed_files(manifest: Path) -> list[Path]:
    """The files that a manifest lists. Raises UserError when one of them is missing or has changed since."""
    files = []
    for entry in read_json(manifest)["files"]:
        listed = ListedFile(**entry)
        path = Path(listed.path)
        if not path.is_file() or _describe(path) != listed:
            raise UserError(f"{path}: has changed since its source was listed; run again")
        files.append(path)
    return files
