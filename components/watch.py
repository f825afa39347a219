"""Name every file of a local source and its digest, so that DVC and `ingest` notice when data are added or changed.

DVC cannot take a list of paths from params.yaml, but it can make a stage for each source: this one depends on the
source's path, and `ingest` on what it writes.

    python -m components.watch --source incoming --manifest data/sources/incoming.json
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.settings import PARAMS, FileSource, load_settings
from components.stage import stage
from components.tables import read_json, write_json

FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".zst")


def list_files(name: str, source: FileSource) -> dict[str, Any]:
    """The manifest: `files` with path, size in bytes and SHA-256, by path; `ignored` with the paths left out.

    Raises UserError for a path that is not there, a file that cannot be read, and a file of an unknown format that
    is named directly; in a folder such a file is ignored, as are hidden files.
    """
    key, path = f"{PARAMS}: ingest.files.{name}.path", Path(source.path)
    if path.is_file():
        if not is_readable_format(path):
            raise UserError(f"{key}: {path}: unknown ending; expected {', '.join(FORMATS)}, also with .gz or .zst")
        return {"files": [_describe(path)], "ignored": []}
    if not path.is_dir():
        raise UserError(f"{key}: {path}: no such file or folder")
    pattern = Path(source.pattern)
    if not pattern.parts or pattern.is_absolute() or ".." in pattern.parts:
        raise UserError(f"{PARAMS}: ingest.files.{name}.pattern: {source.pattern!r} is no glob below {path}")
    try:
        found = sorted(file for file in path.glob(source.pattern) if file.is_file() and not _is_hidden(file, path))
    except ValueError as error:  # such as **x
        raise UserError(f"{PARAMS}: ingest.files.{name}.pattern: {source.pattern!r}: {error}") from error
    return {
        "files": [_describe(file) for file in found if is_readable_format(file)],
        "ignored": [file.as_posix() for file in found if not is_readable_format(file)],
    }


def is_readable_format(path: Path) -> bool:
    return format_of(path) in FORMATS


def format_of(path: Path) -> str:
    """The ending that tells the format, below that of a compression: `.jsonl` of `x.jsonl.gz`."""
    bare = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return bare.suffix.lower()


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _describe(path: Path) -> dict[str, Any]:
    try:
        str(path).encode()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except UnicodeEncodeError as error:
        raise UserError(f"{str(path)!r}: the file's name is not UTF-8; rename it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return {"path": path.as_posix(), "bytes": path.stat().st_size, "sha256": digest}


def watched_files(manifest: Path) -> list[Path]:
    """The files that a manifest names; raises UserError when one of them is no longer what it was."""
    files = []
    for entry in read_json(manifest)["files"]:
        path = Path(entry["path"])
        if not path.is_file() or _describe(path) != entry:
            raise UserError(f"{path}: not what it was when its source was listed; run again")
        files.append(path)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m components.watch", description="Name the files of a source.")
    parser.add_argument("--source", required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    options = parser.parse_args()
    with stage("watch", options.source):
        sources = load_settings().ingest.files
        if options.source not in sources:
            raise UserError(f"{PARAMS}: ingest.files: no source {options.source!r}; there are {', '.join(sources)}")
        manifest = list_files(options.source, sources[options.source])
        for path in manifest["ignored"]:
            print(f"{path}: ignored; only {', '.join(FORMATS)} (also with .gz or .zst) are read")
        write_json(options.manifest, manifest)


if __name__ == "__main__":
    main()
