"""Manifests of local sources: path, size and SHA-256 of every file that ingest reads.

Also the list of the file formats that components/data_sources/files.py reads.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from components.core.errors import UserError, first_line
from components.core.files import read_json, write_json
from components.core.paths import PARAMS
from components.core.settings.ingest import FileSource

FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".zst")
LONGEST_SHOWN = 120  # characters of a wrong path that an error repeats


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


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies in a source's folder: a file to read, a link that is not followed, or something that cannot be read."""

    path: Path
    followed: bool = True
    mistake: str | None = None

    @property
    def is_read(self) -> bool:
        return self.followed and is_readable_format(self.path)


def list_files(name: str, source: FileSource) -> Manifest:
    """The manifest of the source `name`. Hidden files of a folder are in neither list.

    Raises UserError for a path that does not exist, a pattern that is no glob below the folder, anything in the folder
    that cannot be read, and a path to a single file of unknown format.
    """
    path = Path(source.path)
    mistakes = list(_mistakes_of_path(name, path))
    if mistakes:
        raise UserError(*mistakes)
    if path.is_dir():
        entries = _matching_entries(name, path, source)
    elif is_readable_format(path):
        entries = [Entry(path)]
    else:
        raise UserError(
            f"{_key(name)}: {path}: unknown extension; expected {', '.join(FORMATS)}, each also with .gz or .zst"
        )
    return Manifest(
        [_describe(entry.path) for entry in entries if entry.is_read],
        [entry.path.as_posix() for entry in entries if not entry.is_read],
    )


def check_source(name: str, source: FileSource, outputs: Iterable[str]) -> list[str]:
    """A mistake for everything that DVC would hang on or fail at in the source. `outputs`: what the pipeline writes."""
    path = Path(source.path)
    mistakes = list(_mistakes_of_path(name, path))
    if mistakes:
        return mistakes
    place, project = path.resolve(), Path.cwd()
    if project.is_relative_to(place):
        return [f"{_key(name)}: {path}: holds the project itself; give the source a folder of its own"]
    for output in outputs:
        written = (project / output).resolve()
        if written.is_relative_to(place) or place.is_relative_to(written):
            return [f"{_key(name)}: {path}: the pipeline writes {output}; give the source a folder of its own"]
    entries = _walk(path, source.follow_links) if path.is_dir() else ()
    return [f"{_key(name)}: {entry.path}: {entry.mistake}" for entry in entries if entry.mistake]


def _key(name: str) -> str:
    return f"{PARAMS}: ingest.files.{name}.path"


def _mistakes_of_path(name: str, path: Path) -> Iterator[str]:
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character
        missing = isinstance(error, FileNotFoundError) and not path.is_symlink()
        reason = "no such file or folder" if missing else "a link to nothing" if _is_link(path) else first_line(error)
        shown = str(path)
        yield f"{_key(name)}: {shown if len(shown) <= LONGEST_SHOWN else shown[:LONGEST_SHOWN] + '...'}: {reason}"
    else:
        if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
            yield f"{_key(name)}: {path}: {_kind(kind)}, neither a file nor a folder"


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except (OSError, ValueError):
        return False


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _walk(root: Path, follow_links: bool) -> Iterator[Entry]:
    """Everything below a folder, in no order: files, links that are not followed, and what cannot be read."""
    base = root.resolve()
    folders = [(root, frozenset([base]))]  # each with what it lies in, so that a link to that ends
    while folders:
        folder, above = folders.pop()
        try:
            paths = list(folder.iterdir())
        except OSError as error:
            yield Entry(folder, mistake=f"cannot be read: {first_line(error)}")
            continue
        for path in paths:
            try:
                path.name.encode()
                mode, target = path.stat().st_mode, path.resolve() if path.is_symlink() else None
            except UnicodeEncodeError:
                yield Entry(path, mistake="the file name is not UTF-8; rename the file")
                continue
            except (OSError, RuntimeError) as error:
                mistake = "a link to nothing; remove it" if _is_link(path) else f"cannot be read: {first_line(error)}"
                yield Entry(path, mistake=mistake)
                continue
            leaves = target is not None and not target.is_relative_to(base)
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                yield Entry(path, mistake=f"{_kind(mode)}, neither a file nor a folder; move it out of the source")
            elif leaves and not follow_links:
                yield Entry(path, followed=False)
            elif stat.S_ISREG(mode):
                yield Entry(path)
            elif target is not None and (not leaves or target in above):  # its files are read at their own place
                yield Entry(path, followed=False)
            else:
                folders.append((path, above | {target} if target else above))


def is_readable_format(path: Path) -> bool:
    """Whether `read_file` can read files with this extension."""
    return format_of(path) in FORMATS


def format_of(path: Path) -> str:
    """The extension that names the format, in lower case and without that of a compression: .jsonl for x.jsonl.gz."""
    uncompressed = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return uncompressed.suffix.lower()


def _matching_entries(name: str, folder: Path, source: FileSource) -> list[Entry]:
    """The files of the folder that match the pattern, and the links that are not followed; none of them hidden.

    Raises UserError for a bad pattern and for what cannot be read.
    """
    key, parts = f"{PARAMS}: ingest.files.{name}.pattern: {source.pattern!r}", Path(source.pattern).parts
    if not parts or Path(source.pattern).is_absolute() or ".." in parts:
        raise UserError(f"{key} is no glob below {folder}")
    if any("**" in part and part != "**" for part in parts):
        raise UserError(f"{key}: '**' can only be an entire part of the path")
    entries = sorted(_walk(folder, source.follow_links), key=lambda entry: entry.path)
    mistakes = [f"{_key(name)}: {entry.path}: {entry.mistake}" for entry in entries if entry.mistake]
    if mistakes:
        raise UserError(*mistakes)
    visible = (entry for entry in entries if not _is_hidden(entry.path, folder))
    return [entry for entry in visible if not entry.followed or _matches(entry.path.relative_to(folder).parts, parts)]


def _matches(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the parts of a path are those of a glob; `**` stands for any number of folders."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(path[start:], pattern[1:]) for start in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


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
