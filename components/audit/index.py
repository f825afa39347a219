"""An index of the history in SQLite: which table of which run has a record, so that `audit record` answers at once.

It is made from statements, tables and git's history, and can be deleted at any time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.audit.snapshots import WORKSPACE, Snapshot, commits
from components.core.paths import SCRATCH
from components.provenance.digests import file_digest

INDEX = SCRATCH / "audit.sqlite"
INDEX_FORMAT = 4  # an index of another format is made anew

# checkpoint.selection, .duplicates, .holdout and .rejected are ids of file; null where the file's bytes are lost
SCHEMA = """
    create table snapshot (ref text primary key, lost integer);
    create table checkpoint (digest text, ref text, iteration text, position integer,
                             selection integer, duplicates integer, holdout integer, rejected integer,
                             primary key (digest, ref));
    create table file (id integer primary key, digest text unique);
    create table occurrence (record blob, file integer, rank integer, complexity real, diversity real, score real,
                             reason text);
    create index occurrence_by_record on occurrence (record);
"""


@dataclass(frozen=True, slots=True)
class IndexedCheckpoint:
    """A checkpoint in one snapshot."""

    digest: str
    ref: str
    iteration: str
    files: tuple[int | None, ...]
    """Ids of its selection, duplicates, holdout and rejected records; None where the bytes are lost."""

    @property
    def selection_is_lost(self) -> bool:
        """Whether nobody can tell which records trained the iteration."""
        return self.files[0] is None


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A record in a table: its numbers in a selection, and why it was not selected."""

    rank: int | None
    complexity: float | None
    diversity: float | None
    score: float | None
    reason: str | None
    """None for a record that was selected."""


@dataclass(frozen=True, slots=True)
class IndexSize:
    """How much an index holds."""

    checkpoints: int
    occurrences: int


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
    index.executescript(SCHEMA)
    index.execute(f"pragma user_version = {INDEX_FORMAT}")
    _update(index)
    return index


def measure_index(index: sqlite3.Connection) -> IndexSize:
    """Number of checkpoints, each counted in every snapshot that has it, and of occurrences of records."""
    queries = ("select count(*) from checkpoint", "select count(*) from occurrence")
    return IndexSize(*(index.execute(query).fetchone()[0] for query in queries))


def find_occurrences(index: sqlite3.Connection, record: str) -> dict[int, Occurrence]:
    """Id of each indexed table that has the record -> the record in it."""
    query = "select file, rank, complexity, diversity, score, reason from occurrence where record = ?"
    return {file: Occurrence(*values) for file, *values in index.execute(query, [bytes.fromhex(record)])}


def list_checkpoints(index: sqlite3.Connection) -> Iterator[IndexedCheckpoint]:
    """Every checkpoint in every snapshot that has it: oldest snapshot first, its iterations in order."""
    query = """
        select digest, ref, iteration, selection, duplicates, holdout, rejected from checkpoint
        order by position, cast(iteration as integer)
    """
    for digest, ref, iteration, *files in index.execute(query):
        yield IndexedCheckpoint(digest, ref, iteration, tuple(files))


def commits_with(index: sqlite3.Connection, digest: str) -> list[str]:
    """The commits that recorded a checkpoint, oldest first."""
    query = "select ref from checkpoint where digest = ? and ref != ? order by position"
    return [ref for (ref,) in index.execute(query, [digest, WORKSPACE])]


def lost_commits(index: sqlite3.Connection) -> list[str]:
    """The commits whose statements are lost."""
    return [ref for (ref,) in index.execute("select ref from snapshot where lost")]


def _update(index: sqlite3.Connection) -> None:
    """Add the commits that are not in the index, oldest first, and the workspace as it is now."""
    with index:
        index.execute("delete from checkpoint where ref = ?", [WORKSPACE])
        # bytes that were lost may have come back, to the cache or to the remote
        index.execute("delete from snapshot where lost or ref in (select ref from checkpoint where selection is null)")
        index.execute("delete from checkpoint where selection is null")
        indexed = {ref for (ref,) in index.execute("select ref from snapshot")}
        for ref in reversed(commits()):
            if ref not in indexed:
                snapshot = Snapshot(ref)
                _add_snapshot(index, snapshot)
                index.execute("insert into snapshot values (?, ?)", [ref, snapshot.is_lost])
        _add_snapshot(index, Snapshot(WORKSPACE))


def _add_snapshot(index: sqlite3.Connection, snapshot: Snapshot) -> None:
    position = index.execute("select coalesce(max(position), 0) + 1 from checkpoint").fetchone()[0]
    for iteration in snapshot.iterations:
        paths = (
            f"data/iterations/{iteration}/selection.parquet",
            "data/duplicates.parquet",
            "data/holdout.parquet",
            "data/rejected.parquet",
        )
        files = [_add_file(index, snapshot, path) for path in paths]
        digest = snapshot.recorded_digest(f"models/{iteration}")
        index.execute(
            "insert or ignore into checkpoint values (?, ?, ?, ?, ?, ?, ?, ?)",
            [digest, snapshot.ref, iteration, position, *files],
        )


def _add_file(index: sqlite3.Connection, snapshot: Snapshot, path: str) -> int | None:
    """The id of a table, which is read unless the index has it; None when its bytes are lost."""
    digest = snapshot.recorded_digest(path)
    indexed = index.execute("select id from file where digest = ?", [digest]).fetchone()
    if indexed:
        return int(indexed[0])
    file = snapshot.find(path)
    if file is None or file_digest(file) != digest:
        return None
    number = int(index.execute("insert into file (digest) values (?)", [digest]).lastrowid or 0)
    read = READERS[Path(path).name]
    rows = ((bytes.fromhex(record), number, *values) for record, *values in read(file))
    index.executemany("insert into occurrence values (?, ?, ?, ?, ?, ?, ?)", rows)
    return number


# Rows of each table as record id, rank, complexity, diversity, score, reason: tuples, since there are millions.


def _read_selection(file: Path) -> Iterator[tuple[Any, ...]]:
    columns = ("id", "rank", "complexity", "diversity", "score", "status", "reason")
    rows = pq.read_table(file, columns=list(columns)).to_pydict()
    for *values, status, reason in zip(*(rows[column] for column in columns), strict=True):
        yield (*values, None if status == "selected" else f"{status}: {reason}")


def _read_duplicates(file: Path) -> Iterator[tuple[Any, ...]]:
    for row in pq.read_table(file).to_pylist():
        kept = f" of {row['kept_id']}" if row["kept_id"] else ""
        yield row["id"], None, None, None, None, f"duplicate ({row['kind']}){kept}, similarity {row['similarity']}"


def _read_holdout(file: Path) -> Iterator[tuple[Any, ...]]:
    for record in pq.read_table(file, columns=["id"])["id"].to_pylist():
        yield record, None, None, None, None, "in the holdout"


def _read_rejected(file: Path) -> Iterator[tuple[Any, ...]]:
    for row in pq.read_table(file, columns=["id", "where", "reason", "detail"]).to_pylist():
        if row["id"] is not None:  # what could not be read as a conversation has no id
            reason = f"rejected: {row['reason']}: {row['detail']} ({row['where']})"
            yield row["id"], None, None, None, None, reason


READERS = {
    "selection.parquet": _read_selection,
    "duplicates.parquet": _read_duplicates,
    "holdout.parquet": _read_holdout,
    "rejected.parquet": _read_rejected,
}
