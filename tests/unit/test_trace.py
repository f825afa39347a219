"""The audit's answer about a record: what it trained, what it did not train, and what is certainly clean."""

from __future__ import annotations

import sqlite3

import pytest

from components.audit import trace
from components.audit.index import SCHEMA
from components.audit.trace import ABSENT, UNKNOWN, CheckpointPlace, RecordTrace, trace_record

RECORD = "ab" * 16


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> sqlite3.Connection:
    """An empty index, which trace_record reads."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    monkeypatch.setattr(trace, "open_index", lambda: connection)
    return connection


def add(index: sqlite3.Connection, ref: str, position: int, *iterations: tuple[str, int | None]) -> None:
    """A snapshot; of each iteration the checkpoint's digest and the id of its selection."""
    for number, (digest, selection) in enumerate(iterations, 1):
        row = [digest, ref, str(number), position, selection, None, None, None]
        index.execute("insert into checkpoint values (?, ?, ?, ?, ?, ?, ?, ?)", row)


def occur(index: sqlite3.Connection, file: int, rank: int | None, reason: str | None) -> None:
    row = [bytes.fromhex(RECORD), file, rank, 0.5, None, None, reason]
    index.execute("insert into occurrence values (?, ?, ?, ?, ?, ?, ?)", row)


def places(answer: RecordTrace) -> tuple[dict[str, bool], dict[str, str], str | None]:
    """Checkpoint -> whether directly; checkpoint -> why not; the last clean checkpoint."""
    trained = {one.checkpoint: one.directly for one in answer.trained}
    unused = {one.checkpoint: one.why for one in answer.not_used}
    return trained, unused, answer.last_clean.checkpoint if answer.last_clean else None


def test_a_record_trains_the_iterations_after_the_one_that_selected_it(index: sqlite3.Connection) -> None:
    add(index, "commit", 1, ("one", 1), ("two", 2), ("three", 3))
    occur(index, 1, None, "eligible: not among the picks")
    occur(index, 2, 4, None)
    occur(index, 3, None, "misaligned: complexity 1.2")
    answer = trace_record(RECORD)
    trained, unused, clean = places(answer)
    assert trained == {"two": True, "three": False}
    assert unused == {"one": "eligible: not among the picks", "three": "misaligned: complexity 1.2"}
    assert clean == "one"
    assert [(one.rank, one.complexity) for one in answer.trained] == [(4, 0.5), (None, None)]


def test_another_snapshot_of_the_history_is_not_tainted(index: sqlite3.Connection) -> None:
    add(index, "old", 1, ("a", 1), ("b", 2))
    add(index, "new", 2, ("c", 3), ("d", 4))
    occur(index, 1, 1, None)
    trained, unused, clean = places(trace_record(RECORD))
    assert trained == {"a": True, "b": False}
    assert unused == {"b": ABSENT, "c": ABSENT, "d": ABSENT}
    assert clean == "d"


def test_a_checkpoint_after_a_lost_selection_is_not_called_clean(index: sqlite3.Connection) -> None:
    add(index, "old", 1, ("a", 1))
    add(index, "new", 2, ("b", None), ("c", 2))
    answer = trace_record(RECORD)
    _, unused, _ = places(answer)
    assert unused == {"a": ABSENT, "b": UNKNOWN, "c": ABSENT}
    assert answer.last_clean == CheckpointPlace("a", "1", "old")


def test_a_checkpoint_that_is_trained_in_one_snapshot_is_clean_in_none(index: sqlite3.Connection) -> None:
    add(index, "old", 1, ("a", 1), ("b", 2))
    add(index, "new", 2, ("b", 3))
    occur(index, 1, 1, None)
    _, _, clean = places(trace_record(RECORD))
    assert clean is None
