"""Records, conversations that end with the assistant's response, and the Parquet files that hold them.

The id of a record is the first 32 hex digits of the SHA-256 of the canonical JSON of its NFC-normalized messages:
the same conversation has the same id, whatever its source.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.data import tables

ROLES = ("system", "user", "assistant")


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


def to_table(records: Iterable[Record]) -> pa.Table:
    """tables.RECORDS of the records, in their order."""
    rows = [
        {
            "id": record.id,
            "source": record.source,
            "messages": [{"role": message.role, "content": message.content} for message in record.messages],
            "meta": json.dumps(record.meta, ensure_ascii=False, sort_keys=True),
        }
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema=tables.RECORDS)


def from_rows(rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    """The records of the rows of a tables.RECORDS table, in the form that `to_pylist` gives them."""
    for row in rows:
        messages = tuple(Message(message["role"], message["content"]) for message in row["messages"])
        yield Record(row["id"], row["source"], messages, json.loads(row["meta"]))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write the records to a Parquet file, in their order."""
    tables.write(path, to_table(records), tables.RECORDS)


def read_records(path: Path) -> list[Record]:
    """All records of a file. Raises UserError when the file is missing or not such a table."""
    return list(from_rows(tables.read(path, tables.RECORDS).to_pylist()))


def iterate_records(path: Path, batch_size: int = 4096) -> Iterator[Record]:
    """Yield the records of a file, `batch_size` of them in memory at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size):
            yield from from_rows(batch.to_pylist())
