"""Records: conversations whose last message is the response, and the Parquet files that hold them.

The id of a record is the first 32 hex characters of the SHA-256 of the canonical JSON of its NFC-normalized
messages: the same conversation has the same id wherever it came from.
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
    """A conversation. `meta` holds JSON values that say where it came from; it is no part of the id."""

    id: str
    source: str
    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def response(self) -> str:
        return self.messages[-1].content

    @property
    def prompt(self) -> str:
        """Everything before the response, one message a paragraph, for people and for comparing texts."""
        return "\n\n".join(message.content for message in self.messages[:-1])


def content_id(messages: Iterable[Message]) -> str:
    """32 hex characters; see the head of this file."""
    canonical = [
        {"content": unicodedata.normalize("NFC", message.content), "role": message.role} for message in messages
    ]
    text = json.dumps(canonical, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def make_record(source: str, messages: Iterable[Message], meta: dict[str, Any] | None = None) -> Record:
    messages = tuple(messages)
    return Record(content_id(messages), source, messages, meta or {})


def to_table(records: Iterable[Record]) -> pa.Table:
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
    for row in rows:
        messages = tuple(Message(message["role"], message["content"]) for message in row["messages"])
        yield Record(row["id"], row["source"], messages, json.loads(row["meta"]))


def write_records(path: Path, records: Iterable[Record]) -> None:
    tables.write(path, to_table(records), tables.RECORDS)


def read_records(path: Path) -> list[Record]:
    return list(from_rows(tables.read(path, tables.RECORDS).to_pylist()))


def iterate_records(path: Path, batch_size: int = 4096) -> Iterator[Record]:
    """The records of a file one after the other; memory does not grow with the file."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size):
            yield from from_rows(batch.to_pylist())
