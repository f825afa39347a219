"""The records of the benchmarks: from an Alpaca file, or docstrings of the standard library where none is given."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from components.data.records import Message, Record, make_record
from components.data_sources.docstrings import read_docstrings


def read_alpaca(file: Path, count: int | None = None) -> list[Record]:
    """The first `count` records of an Alpaca file that have a prompt and a response."""
    return _records(json.loads(file.read_text(encoding="utf-8")), "alpaca")[:count]


def docstring_records() -> list[Record]:
    """All docstrings of the standard library, as the default run reads them."""
    return _records((item.value for item in read_docstrings()), "stdlib")


def _records(rows: Iterable[Any], source: str) -> list[Record]:
    records = []
    for row in rows:
        prompt = f"{row['instruction']}\nInput: {row['input']}" if row.get("input") else row["instruction"]
        if row["output"].strip() and prompt.strip():
            records.append(make_record(source, [Message("user", prompt), Message("assistant", row["output"])]))
    return records


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` records at equal distances, in their order."""
    step = max(len(records) // count, 1)
    return list(records[::step][:count])
