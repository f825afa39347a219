"""Traces a record through the history: the checkpoints that it trained, and why it did not train the others."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.audit.index import (
    IndexedCheckpoint,
    Occurrence,
    find_occurrences,
    list_checkpoints,
    lost_commits,
    open_index,
)
from components.audit.snapshots import snapshots
from components.core.errors import UserError
from components.data.records import read_records

UNKNOWN = "unknown: the selection is neither here, nor in DVC's cache, nor on its remote"
ABSENT = "not in that run's sources, or no conversation could be made of it"


@dataclass(frozen=True, slots=True)
class CheckpointPlace:
    """A checkpoint in the history: its digest, its iteration, and the snapshot that recorded it."""

    checkpoint: str
    iteration: str
    recorded_in: str


@dataclass(frozen=True, slots=True)
class TrainedCheckpoint(CheckpointPlace):
    """A checkpoint that the record trained; the numbers are None when only an earlier iteration selected the record."""

    directly: bool
    """Whether the checkpoint's own iteration selected the record."""
    rank: int | None
    complexity: float | None
    diversity: float | None
    score: float | None


@dataclass(frozen=True, slots=True)
class UnusedIn(CheckpointPlace):
    """A checkpoint whose own iteration did not select the record."""

    why: str


@dataclass(frozen=True, slots=True)
class RecordTrace:
    """A record's way through the history."""

    record: str
    trained: list[TrainedCheckpoint]
    not_used: list[UnusedIn]
    last_clean: CheckpointPlace | None
    """The newest checkpoint that the record certainly did not train; None when only the base model is clean."""
    lost: list[str]
    """Commits whose statements are lost, so that their checkpoints are unknown."""


@dataclass(frozen=True, slots=True)
class _Visit:
    """A record at a checkpoint."""

    at: IndexedCheckpoint
    occurrence: Occurrence | None
    """None for a record that no table of the run has."""
    selected: bool
    """Whether the checkpoint's own iteration selected it."""
    tainted: bool
    """Whether that iteration, or an earlier one of the same snapshot, selected it."""
    uncertain: bool
    """Whether the selection of that iteration, or of an earlier one of the same snapshot, is lost."""


def trace_record(record: str) -> RecordTrace:
    """A record's way through the whole history. The records of a checkpoint's earlier iterations trained it, too."""
    index = open_index()
    visits = list(_visits(index, record))
    trained: dict[str, TrainedCheckpoint] = {}
    for visit in visits:
        if visit.tainted:
            trained.setdefault(visit.at.digest, _trained(visit))
    directly = {digest for digest, checkpoint in trained.items() if checkpoint.directly}
    not_used = [_unused(visit) for visit in visits if not visit.selected and visit.at.digest not in directly]
    clean = [visit.at for visit in visits if not visit.uncertain and visit.at.digest not in trained]
    last_clean = CheckpointPlace(clean[-1].digest, clean[-1].iteration, clean[-1].ref) if clean else None
    return RecordTrace(record, list(trained.values()), not_used, last_clean, lost_commits(index))


def _visits(index: sqlite3.Connection, record: str) -> Iterator[_Visit]:
    """The record at every checkpoint, oldest first."""
    occurrences = find_occurrences(index, record)
    tainted: set[str] = set()  # snapshots
    uncertain: set[str] = set()
    for checkpoint in list_checkpoints(index):
        occurrence = next((occurrences[file] for file in checkpoint.files if file in occurrences), None)
        selected = occurrence is not None and occurrence.reason is None
        if selected:
            tainted.add(checkpoint.ref)
        if checkpoint.selection_is_lost:
            uncertain.add(checkpoint.ref)
        yield _Visit(checkpoint, occurrence, selected, checkpoint.ref in tainted, checkpoint.ref in uncertain)


def _trained(visit: _Visit) -> TrainedCheckpoint:
    at = visit.at
    pick = visit.occurrence if visit.selected and visit.occurrence else Occurrence(None, None, None, None, None)
    numbers = (pick.rank, pick.complexity, pick.diversity, pick.score)
    return TrainedCheckpoint(at.digest, at.iteration, at.ref, visit.selected, *numbers)


def _unused(visit: _Visit) -> UnusedIn:
    at, occurrence = visit.at, visit.occurrence
    why = UNKNOWN if at.selection_is_lost else (occurrence.reason or "") if occurrence else ABSENT
    return UnusedIn(at.digest, at.iteration, at.ref, why)


def ids_with_text(text: str) -> list[str]:
    """Ids of the records that have the text in a message, in every snapshot whose records can be read."""
    ids: dict[str, None] = {}
    read = set()
    for snapshot in snapshots():
        digest = snapshot.recorded_digest("data/raw.parquet")
        file = None if digest in read else snapshot.find("data/raw.parquet")
        read.add(digest)
        for record in read_records(file) if file else ():
            if any(text in message.content for message in record.messages):
                ids.setdefault(record.id)
    return list(ids)


def ids_of_file(file: Path) -> list[str]:
    """Ids that ingest would give the records of a JSON file. Raises UserError for a record of no known shape."""
    from components.data.records import make_record
    from components.data_sources.shapes import KNOWN, BadRecordError, finish, recognize

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON: {error}") from error
    ids = []
    for number, row in enumerate(content if isinstance(content, list) else [content], 1):
        convert = recognize(row) if isinstance(row, dict) else None
        if convert is None:
            raise UserError(f"{file} record {number}: of no known shape; known are {KNOWN}")
        try:
            ids.append(make_record("", finish(convert(row))[0]).id)
        except BadRecordError as error:
            raise UserError(f"{file} record {number}: {error.reason}") from error
    return ids
