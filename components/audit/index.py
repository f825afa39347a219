"""TODO"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.audit.snapshots import WORKSPACE, Snapshot, commits
from components.core.paths import SCRATCH
from components.provenance.digests import file_digest

INDEX = SCRATCH / "audit.sqlite"


INDEX_FORMAT = 3


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
        digest = snapshot.recorded_digest(f"models/{iteration}")
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
    digest = snapshot.recorded_digest(path)
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
