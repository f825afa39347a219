"""Records, conversations that end with the assistant's response, and the Parquet files that hold them.

The id of a record is the first 32 hex digits of the SHA-256 of the canonical JSON of its NFC-normalized messages:
the same conversation has the same id, whatever its source.

A million records as Python objects take 2 GB and more. Where only their texts are read, they stay in Arrow's memory
(StoredRecords), which takes no more than their characters and 60 bytes each.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.core.files import atomic_write
from components.data import tables

ROLES = ("system", "user", "assistant")
AT_A_TIME = 4096  # records that are made of stored ones
GROUP_ROWS, GROUP_BYTES = 1 << 16, 1 << 27  # of a file's row group, about: it is in memory while it is written or read


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation. `meta` holds JSON values about its origin, which do not enter the id."""

    id: str
    source: str
    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def response(self) -> str:
        return self.messages[-1].content

    @property
    def prompt(self) -> str:
        """All messages before the response, one paragraph each: for readers and for the comparison of texts."""
        return "\n\n".join(message.content for message in self.messages[:-1])


def content_id(messages: Iterable[Message]) -> str:
    """The id of a conversation: 32 hex digits, defined at the top of this module."""
    canonical = [
        {"content": unicodedata.normalize("NFC", message.content), "role": message.role} for message in messages
    ]
    text = json.dumps(canonical, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def make_record(source: str, messages: Iterable[Message], meta: dict[str, Any] | None = None) -> Record:
    """The record of a conversation, with the id that its messages have."""
    messages = tuple(messages)
    return Record(content_id(messages), source, messages, meta or {})


class StoredRecords(Sequence[Record]):
    """Records in a tables.RECORDS table; each is made when it is asked for, and forgotten."""

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        self._batches = [batch for batch in batches if batch.num_rows]
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        row = range(len(self))[index]  # raises IndexError, counts from the end
        number = bisect_right(self._ends, row)
        start = self._ends[number - 1] if number else 0
        return next(_from_batch(self._batches[number].slice(row - start, 1)))

    def __iter__(self) -> Iterator[Record]:
        for batch in self._batches:
            for start in range(0, batch.num_rows, AT_A_TIME):
                yield from _from_batch(batch.slice(start, AT_A_TIME))

    def take(self, rows: Sequence[int]) -> StoredRecords:
        """The records in these rows, which ascend."""
        wanted, starts = np.array(rows, np.int64), [0, *self._ends]
        bounds = np.searchsorted(wanted, starts)
        return StoredRecords(
            [
                batch.take(pa.array(wanted[first:last] - start))
                for batch, start, first, last in zip(self._batches, starts, bounds, bounds[1:], strict=False)
            ]
        )

    def tables(self) -> Iterator[pa.Table]:
        """tables.RECORDS of the records, in their order, part by part."""
        for batch in self._batches:
            for start in range(0, batch.num_rows, AT_A_TIME):
                yield pa.Table.from_batches([batch.slice(start, AT_A_TIME)], tables.RECORDS)


def take_records(records: Sequence[Record], rows: Sequence[int]) -> Sequence[Record]:
    """The records in these rows, which ascend; stored ones stay stored."""
    return records.take(rows) if isinstance(records, StoredRecords) else [records[row] for row in rows]


def to_table(records: Iterable[Record]) -> pa.Table:
    """tables.RECORDS of the records, in their order."""
    ids, sources, metas, ends = [], [], [], [0]
    roles: list[str] = []
    contents: list[str] = []
    for record in records:
        ids.append(record.id)
        sources.append(record.source)
        metas.append(json.dumps(record.meta, ensure_ascii=False, sort_keys=True))
        roles.extend(message.role for message in record.messages)
        contents.extend(message.content for message in record.messages)
        ends.append(len(roles))
    kind = tables.RECORDS.field("messages").type
    fields = [pa.array(roles, pa.string()), pa.array(contents, pa.string())]
    messages = pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()), pa.StructArray.from_arrays(fields, fields=list(kind.value_type)), type=kind
    )
    return pa.table([pa.array(ids), pa.array(sources), messages, pa.array(metas)], schema=tables.RECORDS)


def from_rows(rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    """The records of the rows of a tables.RECORDS table, in the form that `to_pylist` gives them."""
    for row in rows:
        messages = tuple(Message(message["role"], message["content"]) for message in row["messages"])
        yield Record(row["id"], row["source"], messages, json.loads(row["meta"]))


def _from_batch(batch: pa.RecordBatch) -> Iterator[Record]:
    """The records of a batch; its columns are converted as a whole, in a third of the time of its rows."""
    column = batch.column("messages")
    ends = (column.offsets.to_numpy() - column.offsets[0].as_py()).tolist()
    messages = [Message(*both) for both in zip(*(part.to_pylist() for part in column.flatten().flatten()), strict=True)]
    columns = (batch.column(name).to_pylist() for name in ("id", "source", "meta"))
    rows = zip(*columns, ends, ends[1:], strict=False)
    for id_, source, meta, start, end in rows:
        yield Record(id_, source, tuple(messages[start:end]), json.loads(meta))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write the records to a Parquet file, in their order."""
    if isinstance(records, StoredRecords):
        with _row_groups(path) as write_table:
            for table in records.tables():
                write_table(table)
    else:
        with records_writer(path) as write:
            for record in records:
                write(record)


@contextmanager
def records_writer(path: Path) -> Iterator[Callable[[Record], None]]:
    """Yield the function that appends a record to a file, of which a row group is in memory at a time."""
    with _row_groups(path) as write_table:
        waiting: list[Record] = []

        def write(record: Record) -> None:
            waiting.append(record)
            if len(waiting) == AT_A_TIME:
                write_table(to_table(waiting))
                waiting.clear()

        yield write
        write_table(to_table(waiting))


@contextmanager
def _row_groups(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Yield the function that appends a table to a file; a row group is several of them, in one piece."""
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, tables.RECORDS, compression="zstd") as file:
        waiting: list[pa.Table] = []
        written = 0

        def write_group() -> None:
            nonlocal written
            group = pa.concat_tables([tables.RECORDS.empty_table(), *waiting]).combine_chunks()
            file.write_table(group)
            written += group.num_rows
            waiting.clear()

        def write_table(table: pa.Table) -> None:
            waiting.append(table)
            rows, size = (sum(getattr(part, what) for part in waiting) for what in ("num_rows", "nbytes"))
            if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                write_group()

        yield write_table
        if any(part.num_rows for part in waiting) or not written:
            write_group()


def read_records(path: Path) -> list[Record]:
    """All records of a file. Raises UserError when the file is missing or not such a table."""
    return list(open_records(path))


def open_records(path: Path) -> StoredRecords:
    """All records of a file, in Arrow's memory. Raises UserError when the file is missing or not such a table."""
    return StoredRecords(tables.read(path, tables.RECORDS).to_batches())


def iterate_records(path: Path, batch_size: int = AT_A_TIME) -> Iterator[Record]:
    """Yield the records of a file, `batch_size` of them in memory at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size):
            yield from _from_batch(batch)
