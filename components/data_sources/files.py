"""Readers of data files: JSON, JSONL, CSV, Parquet and Arrow, uncompressed or compressed with gzip or zstd."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import UserError, first_line
from components.data_sources.file_manifest import format_of
from components.data_sources.item import Item, Items

CODECS = {".gz": "gzip", ".zst": "zstd"}


def read_file(path: Path) -> Items:
    """Yield the values of a file in its order. The extension names the format.

    A broken line of JSONL and a CSV row with a wrong number of fields are items with a reason. Raises UserError, which
    names the file and where possible the line, for any other error.
    """
    readers: dict[str, Callable[[Path], Items]] = {
        ".json": _read_json,
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
        ".arrow": _read_arrow,
    }
    try:
        yield from readers[format_of(path)](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} line {_first_undecodable_line(path)}: not UTF-8 text; save it as UTF-8") from error
    except (OSError, EOFError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from error


@contextmanager
def _open_bytes(path: Path) -> Iterator[Any]:
    """A stream of the file's bytes, decompressed."""
    codec = CODECS.get(path.suffix.lower())
    with pa.OSFile(str(path)) if codec is None else pa.input_stream(str(path), compression=codec) as stream:
        yield stream


@contextmanager
def _open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """A stream of the file's text, decompressed, decoded and without a byte order mark."""
    with (
        _open_bytes(path) as stream,
        io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8-sig", newline="") as text,
    ):
        yield text


def _read_json(path: Path) -> Items:
    for number, value in enumerate(_list_of_records(path, _parse_json(path)), 1):
        yield Item(f"{path} record {number}", value)


def _parse_json(path: Path) -> Any:
    with _open_text(path) as text:
        try:
            return json.load(text)
        except json.JSONDecodeError as error:
            hint = "; a file with one object per line must end in .jsonl" if error.msg == "Extra data" else ""
            raise UserError(
                f"{path} line {error.lineno} column {error.colno}: not valid JSON: {error.msg}{hint}"
            ) from error
        except UnicodeDecodeError:  # a ValueError, too; read_file finds its line
            raise
        except (RecursionError, ValueError) as error:  # an integer of thousands of digits is a ValueError
            raise UserError(f"{path}: not usable JSON: {error}") from error


def _list_of_records(path: Path, value: Any) -> list[Any]:
    """The value itself where it is a list, or the only list in an object. Raises UserError for anything else."""
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        if len(lists) != 1:
            raise UserError(
                f"{path}: an object with keys {', '.join(map(repr, list(value)[:8]))}; "
                "expected a list of records, or an object with exactly one list in it"
            )
        return lists[0]
    if not isinstance(value, list):
        raise UserError(f"{path}: holds a single {type(value).__name__}; expected a list of records")
    return value


def _read_json_lines(path: Path) -> Items:
    with _open_bytes(path) as stream:
        for number, line in enumerate(io.BufferedReader(stream), 1):
            if line.strip():
                yield _json_line(f"{path} line {number}", line, "utf-8-sig" if number == 1 else "utf-8")


def _json_line(where: str, line: bytes, encoding: str) -> Item:
    try:
        return Item(where, json.loads(line.decode(encoding)))
    except json.JSONDecodeError as error:
        return Item(where, None, "broken_json", f"column {error.colno}: {error.msg}")
    except UnicodeDecodeError as error:
        return Item(where, None, "not_utf8", f"byte {error.start} of the line")
    except (RecursionError, ValueError) as error:  # an integer of thousands of digits is a ValueError
        return Item(where, None, "broken_json", str(error))


def _read_csv(path: Path) -> Items:
    csv.field_size_limit(sys.maxsize)
    with _open_text(path) as text:
        rows = csv.DictReader(text, strict=True)
        try:
            repeated = [column for column, count in Counter(rows.fieldnames or ()).items() if count > 1]
            if repeated:
                raise UserError(f"{path} line 1: column {repeated[0]!r} occurs twice; rename one of them")
            for row in rows:
                where = f"{path} line {rows.line_num}"
                if None in row or None in row.values():  # more or fewer fields than the header
                    expected = len(rows.fieldnames or ())
                    yield Item(where, None, "broken_csv", f"not the {expected} fields of the header")
                else:
                    yield Item(where, row)
        except csv.Error as error:
            raise UserError(f"{path} line {rows.reader.line_num}: not valid CSV: {error}") from error


def _read_parquet(path: Path) -> Items:
    with _open_bytes(path) as stream:
        # Parquet is read from its end, and a compressed stream cannot seek
        source: Any = pa.BufferReader(stream.read()) if path.suffix.lower() in CODECS else stream
        yield from _rows(path, pq.ParquetFile(source).iter_batches(4096))


def _read_arrow(path: Path) -> Items:
    """Arrow's stream format, in which `save_to_disk` of `datasets` writes the data files of a folder."""
    with _open_bytes(path) as stream, pa.ipc.open_stream(stream) as batches:
        yield from _rows(path, batches)


def _rows(path: Path, batches: Iterable[pa.RecordBatch]) -> Items:
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield Item(f"{path} row {number}", value)


def _first_undecodable_line(path: Path) -> int:
    with _open_bytes(path) as stream:
        for number, line in enumerate(io.BufferedReader(stream), 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError(f"{path} is UTF-8 text")
