"""JSON, JSONL, CSV and Parquet files, plain or compressed with gzip or zstd, one value after the other."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import UserError
from components.sources import Item, Items
from components.watch import format_of

CODECS = {".gz": "gzip", ".zst": "zstd"}


def read_file(path: Path) -> Items:
    """Yield what the file holds. Raises UserError that names the file when it cannot be read as what its name says.

    A broken line of JSONL is an item with a reason; any other format is one whole and fails as a whole.
    """
    readers: dict[str, Callable[[Path], Items]] = {
        ".json": _read_json,
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    try:
        yield from readers[format_of(path)](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: byte {error.start} of a block; save it as UTF-8") from error
    except (OSError, EOFError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {_first_line(error)}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file's bytes, decompressed."""
    codec = CODECS.get(path.suffix.lower())
    with pa.OSFile(str(path)) if codec is None else pa.input_stream(str(path), compression=codec) as stream:
        yield stream


@contextmanager
def _opened_text(path: Path) -> Iterator[io.TextIOWrapper]:
    with _opened(path) as stream, io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8-sig", newline="") as text:
        yield text


def _read_json(path: Path) -> Items:
    with _opened_text(path) as text:
        try:
            value = json.load(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path} line {error.lineno} column {error.colno}: not valid JSON: {error.msg}"
                "; a file of one object a line must end in .jsonl"
            ) from error
        except RecursionError as error:
            raise UserError(f"{path}: JSON nested too deeply") from error
    if isinstance(value, dict):
        lists = [key for key, inner in value.items() if isinstance(inner, list)]
        if len(lists) != 1:
            raise UserError(
                f"{path}: an object with keys {', '.join(map(repr, list(value)[:8]))}; "
                "expected a list of records, or an object with exactly one list in it"
            )
        value = value[lists[0]]
    if not isinstance(value, list):
        raise UserError(f"{path}: holds one {type(value).__name__}; expected a list of records")
    for number, item in enumerate(value, 1):
        yield Item(f"{path} record {number}", item)


def _read_json_lines(path: Path) -> Items:
    with _opened_text(path) as text:
        for number, line in enumerate(text, 1):
            if line.strip():
                where = f"{path} line {number}"
                try:
                    yield Item(where, json.loads(line))
                except json.JSONDecodeError as error:
                    yield Item(where, None, "broken_json", f"column {error.colno}: {error.msg}")
                except RecursionError:
                    yield Item(where, None, "broken_json", "nested too deeply")


def _read_csv(path: Path) -> Items:
    csv.field_size_limit(sys.maxsize)
    with _opened_text(path) as text:
        rows = csv.DictReader(text, strict=True)
        try:
            for row in rows:
                where = f"{path} line {rows.line_num}"
                if None in row or None in row.values():
                    expected = len(rows.fieldnames or ())
                    yield Item(where, None, "broken_csv", f"not the {expected} fields of the header")
                else:
                    yield Item(where, row)
        except csv.Error as error:
            raise UserError(f"{path} line {rows.line_num}: not valid CSV: {error}") from error


def _read_parquet(path: Path) -> Items:
    with _opened(path) as stream:
        # Parquet is read from its end: a compressed file has to be unpacked first
        source: Any = pa.BufferReader(stream.read()) if path.suffix.lower() in CODECS else stream
        number = 0
        for batch in pq.ParquetFile(source).iter_batches(4096):
            for value in batch.to_pylist():
                number += 1
                yield Item(f"{path} row {number}", value)


def _first_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]
