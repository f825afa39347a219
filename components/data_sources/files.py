"""Readers of data files: JSON, JSONL, CSV, Parquet and Arrow, uncompressed or compressed with gzip or zstd."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from components.core.errors import UserError, first_line
from components.data_sources.arrow_files import read_arrow, read_parquet
from components.data_sources.file_manifest import format_of
from components.data_sources.item import Item, Items
from components.data_sources.json_files import read_json, read_json_lines
from components.data_sources.reading import BUFFER, Reading, open_bytes, open_text


def read_file(path: Path, reading: Reading | None = None) -> Items:
    """Yield the values of a file in its order. The extension names the format.

    A broken line of JSONL, a CSV row with a wrong number of fields and a row whose value Python cannot hold are items
    with a reason. A column of a table that no record is made of is None in every value. Raises UserError, which names
    the file and where possible the line, for any other error and for what is over the limits of `reading`.
    """
    readers: dict[str, Callable[[Path, Reading], Items]] = {
        ".json": read_json,
        ".jsonl": read_json_lines,
        ".ndjson": read_json_lines,
        ".csv": _read_csv,
        ".parquet": read_parquet,
        ".arrow": read_arrow,
    }
    reading = reading or Reading()
    try:
        yield from readers[format_of(path)](path, reading)
    except UnicodeDecodeError as error:
        line = _first_undecodable_line(path, reading)
        raise UserError(f"{path} line {line}: not UTF-8 text; save it as UTF-8") from error
    except (OSError, EOFError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from error


def _read_csv(path: Path, reading: Reading) -> Items:
    csv.field_size_limit(reading.max_line_bytes)
    with open_text(path, reading) as text:
        lines = _RowLines(path, text, reading)
        rows = csv.DictReader(lines, strict=True)
        try:
            repeated = [column for column, count in Counter(rows.fieldnames or ()).items() if count > 1]
            if repeated:
                raise UserError(f"{path} line 1: column {repeated[0]!r} occurs twice; rename one of them")
            lines.characters = 0
            for row in rows:
                lines.characters = 0
                where = f"{path} line {rows.line_num}"
                if None in row or None in row.values():  # more or fewer fields than the header
                    expected = len(rows.fieldnames or ())
                    yield Item(where, None, "broken_csv", f"not the {expected} fields of the header")
                else:
                    yield Item(where, row)
        except csv.Error as error:
            raise UserError(f"{path} line {rows.reader.line_num}: not valid CSV: {error}") from error


class _RowLines:
    """The lines of a CSV file. Raises UserError for a row over the limit, however many lines it has."""

    def __init__(self, path: Path, text: io.TextIOWrapper, reading: Reading) -> None:
        self._path, self._text, self._reading = path, text, reading
        self._number = 0
        self.characters = 0  # of the row so far

    def __iter__(self) -> _RowLines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._reading.max_line_bytes + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self.characters += len(line)
        if self.characters > self._reading.max_line_bytes:
            raise self._reading.too_long(f"{self._path} line {self._number}: the row")
        return line


def _first_undecodable_line(path: Path, reading: Reading) -> int:
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with open_bytes(path, reading) as stream:
        while True:
            chunk = stream.read(BUFFER)
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                return line + error.object[: error.start].count(b"\n")
            if not chunk:
                raise AssertionError(f"{path} is UTF-8 text")
