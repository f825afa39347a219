"""The project's history as the audit reads it: the workspace, and every commit that changed dvc.lock.

Nothing here is a source of its own: the statements, dvc.lock and git's history say everything. The index
in .iterit/audit.sqlite only makes the question "where was this record?" fast, and is rebuilt from them.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from ruamel.yaml import YAML

from components.digests import file_digest
from components.errors import UserError
from components.provenance import BUNDLE, FOLDER, digest_of, read_bundle, stage_of
from components.scratch import SCRATCH

WORKSPACE = "workspace"
INDEX = SCRATCH / "audit.sqlite"
INDEX_FORMAT = 3
CACHE = Path(".dvc/cache/files/md5")


@dataclass(frozen=True)
class Snapshot:
    """The project at one time: `ref` is a git commit, or WORKSPACE for the files as they lie there."""

    ref: str

    @functools.cached_property
    def statements(self) -> dict[str, dict[str, Any]]:
        """Statement of each stage. Raises UserError for a file that is none."""
        found = {}
        for path, text in self.statement_texts.items():
            try:
                statement = json.loads(text)
                found[stage_of(statement)] = statement
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path} ({self.ref}): not a statement: {error}") from error
        return found

    @functools.cached_property
    def statement_texts(self) -> dict[str, str]:
        """Path of each statement -> its text: the workspace's file, or what dvc.lock names, bundled or in DVC's cache.

        A commit made by hand after `dvc repro` has no bundle, or that of an earlier run.
        """
        if self.ref == WORKSPACE:
            files = [path.as_posix() for path in sorted(Path(FOLDER).glob("*.json"))]
            return {file: self.read(file) for file in files}
        found = {}
        for path in sorted(path for path in self.hashes if path.startswith(f"{FOLDER}/")):
            text = self._bundle.get(path, "")
            if hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() == self.hashes[path]:
                found[path] = text
            elif file := self._stored(path):
                found[path] = file.read_text(encoding="utf-8")
        return found

    @functools.cached_property
    def _bundle(self) -> dict[str, str]:
        try:
            return read_bundle(self.read(BUNDLE)) if self.has(BUNDLE) else {}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{BUNDLE} ({self.ref}): not a bundle of statements: {error}") from error

    @property
    def lost(self) -> bool:
        """Whether it has statements, and they are neither in git, in DVC's cache, nor on its remote."""
        return not self.statement_texts and any(path.startswith(f"{FOLDER}/") for path in self.hashes)

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """Path of each output in dvc.lock -> DVC's MD5."""
        lock = YAML(typ="safe", pure=False).load(self.read("dvc.lock")) or {}
        stages = (lock.get("stages") or {}).values()
        return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs") or ()}

    def read(self, path: str) -> str:
        """A small file that git holds. Raises UserError when it is not there."""
        try:
            return (
                Path(path).read_text(encoding="utf-8") if self.ref == WORKSPACE else git("show", f"{self.ref}:{path}")
            )
        except (FileNotFoundError, subprocess.CalledProcessError):
            raise UserError(f"{path}: not there ({self.ref})") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path} ({self.ref}): not text: {error}") from error

    def has(self, path: str) -> bool:
        if self.ref == WORKSPACE:
            return Path(path).exists()
        return subprocess.run(["git", "cat-file", "-e", f"{self.ref}:{path}"], capture_output=True).returncode == 0

    def made(self, path: str) -> str | None:
        """SHA-256 that the stage which wrote `path` has stated; None for what no stage wrote."""
        return self._subjects.get(path)

    @functools.cached_property
    def _subjects(self) -> dict[str, str]:
        return {one["name"]: one["digest"]["sha256"] for each in self.statements.values() for one in each["subject"]}

    def find(self, path: str) -> Path | None:
        """The bytes of a file or folder as they were: in the workspace, DVC's cache, or its remote; None without."""
        if self.ref == WORKSPACE:
            return Path(path) if Path(path).exists() else None
        wanted = self.made(path)
        if Path(path).exists() and digest_of(Path(path)) == wanted:
            return Path(path)
        return self._stored(path)

    def _stored(self, path: str) -> Path | None:
        """What dvc.lock names: a file of DVC's cache, or a copy of a folder, or of what is on the remote only."""
        md5 = self.hashes.get(path)
        if md5 is None:
            return None
        cached = CACHE / md5[:2] / md5[2:]
        if cached.is_file() and not md5.endswith(".dir"):
            return cached
        from dvc.exceptions import DvcException

        place = Path(tempfile.mkdtemp(dir=_scratch())) / Path(path).name
        try:
            self._files.get(path, str(place), recursive=md5.endswith(".dir"))
        except (DvcException, OSError):
            return None
        return place

    @functools.cached_property
    def _files(self) -> Any:
        from dvc.api import DVCFileSystem

        return DVCFileSystem(".", rev=self.ref)

    @property
    def iterations(self) -> list[str]:
        keys = (stage.partition("@")[2] for stage in self.statements if stage.startswith("finetune@"))
        return sorted(keys, key=int)


@functools.cache
def _scratch() -> Path:
    """For copies; gone when this process ends."""
    SCRATCH.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=SCRATCH.absolute(), prefix="audit-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def commits() -> list[str]:
    """The commits that changed dvc.lock, the newest first."""
    try:
        return git("log", "--all", "--format=%H", "--", "dvc.lock").split()
    except subprocess.CalledProcessError:
        return []


def snapshots() -> Iterator[Snapshot]:
    """The workspace, then the commits, the newest first."""
    yield Snapshot(WORKSPACE)
    for commit in commits():
        yield Snapshot(commit)


# --- the index --------------------------------------------------------------------------------------------------------

TABLES = """
    create table snapshot (ref text primary key, lost integer);
    create table checkpoint (digest text, ref text, iteration text, place integer,
                             selection integer, duplicates integer, holdout integer, rejected integer,
                             primary key (digest, ref));
    create table source (id integer primary key, digest text unique);
    create table entry (record blob, source integer, status text, rank integer, complexity real, diversity real,
                        score real, other text);
    create index entry_of_record on entry (record);
"""


def open_index() -> sqlite3.Connection:
    """The index, brought up to date with the commits and the workspace."""
    if INDEX.is_file():
        index = sqlite3.connect(INDEX)
        if index.execute("pragma user_version").fetchone()[0] == INDEX_FORMAT:
            _update(index)
            return index
        index.close()
    return rebuild_index()


def rebuild_index() -> sqlite3.Connection:
    """Make the index anew from statements, dvc.lock and git's history."""
    INDEX.unlink(missing_ok=True)
    INDEX.parent.mkdir(exist_ok=True)
    index = sqlite3.connect(INDEX)
    index.executescript(TABLES)
    index.execute(f"pragma user_version = {INDEX_FORMAT}")
    _update(index)
    return index


def _update(index: sqlite3.Connection) -> None:
    """Add the commits that are not in it, the oldest first, and the workspace as it is now."""
    with index:
        index.execute("delete from checkpoint where ref = ?", [WORKSPACE])
        # what was nowhere may be there now
        index.execute("delete from snapshot where lost or ref in (select ref from checkpoint where selection is null)")
        index.execute("delete from checkpoint where selection is null")
        have = {ref for (ref,) in index.execute("select ref from snapshot")}
        for ref in reversed(commits()):
            if ref not in have:
                snapshot = Snapshot(ref)
                _add(index, snapshot)
                index.execute("insert into snapshot values (?, ?)", [ref, snapshot.lost])
        _add(index, Snapshot(WORKSPACE))


def _add(index: sqlite3.Connection, snapshot: Snapshot) -> None:
    place = index.execute("select coalesce(max(place), 0) + 1 from checkpoint").fetchone()[0]
    for iteration in snapshot.iterations:
        digest = snapshot.made(f"models/{iteration}")
        sources = [
            _add_source(index, snapshot, path)
            for path in (
                f"data/iterations/{iteration}/selection.parquet",
                "data/duplicates.parquet",
                "data/holdout.parquet",
                "data/rejected.parquet",
            )
        ]
        index.execute(
            "insert or ignore into checkpoint values (?, ?, ?, ?, ?, ?, ?, ?)",
            [digest, snapshot.ref, iteration, place, *sources],
        )


def _add_source(index: sqlite3.Connection, snapshot: Snapshot, path: str) -> int | None:
    """The number of a table in the index, read now unless it is there; None when its bytes are nowhere."""
    digest = snapshot.made(path)
    known = index.execute("select id from source where digest = ?", [digest]).fetchone()
    if known:
        return int(known[0])
    file = snapshot.find(path)
    if file is None or file_digest(file) != digest:
        return None
    cursor = index.execute("insert into source (digest) values (?)", [digest])
    number = int(cursor.lastrowid or 0)
    index.executemany("insert into entry values (?, ?, ?, ?, ?, ?, ?, ?)", _entries(Path(path).name, file, number))
    return number


def _entries(name: str, file: Path, number: int) -> Iterator[tuple[Any, ...]]:
    if name == "selection.parquet":
        columns = ("id", "status", "rank", "complexity", "diversity", "score", "reason")
        rows = pq.read_table(file, columns=list(columns)).to_pydict()
        for record, status, rank, *numbers, reason in zip(*(rows[column] for column in columns), strict=True):
            yield (bytes.fromhex(record), number, status, rank, *numbers, None if status == "selected" else reason)
    elif name == "duplicates.parquet":
        for row in pq.read_table(file).to_pylist():
            yield (bytes.fromhex(row["id"]), number, "duplicate", None, None, None, None, json.dumps(row))
    elif name == "rejected.parquet":
        for row in pq.read_table(file, columns=["id", "where", "reason", "detail"]).to_pylist():
            if row["id"] is not None:  # no conversation could be made of the others
                told = f"{row['reason']}: {row['detail']} ({row['where']})"
                yield (bytes.fromhex(row["id"]), number, "rejected", None, None, None, None, told)
    else:
        for record in pq.read_table(file, columns=["id"])["id"].to_pylist():
            yield (bytes.fromhex(record), number, "holdout", None, None, None, None, None)
