"""Readers of JSON and JSONL, which hold a single value in memory at a time."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.core.errors import UserError
from components.data_sources import shapes
from components.data_sources.item import Item, Items
from components.data_sources.reading import Reading, open_bytes, open_text

CHUNK = 1 << 16  # characters
WHITE_SPACE = re.compile(r"[ \t\n\r]*")
LONGEST_MARK = 16  # characters; a cut before the end of an escape or of -Infinity is no mistake of the file
DECODER = json.JSONDecoder()


def read_json(path: Path, reading: Reading) -> Items:
    """The values of a list, or the single object, or the values of the only list of objects in an object."""
    for number, value in enumerate(_json_values(path, reading), 1):
        yield Item(f"{path} record {number}", value)


def read_json_lines(path: Path, reading: Reading) -> Items:
    """The value of each line; a broken line and one over the limit are items with a reason."""
    with open_bytes(path, reading) as stream:
        number = 0
        while line := stream.readline(reading.max_line_bytes + 1):
            number += 1
            if line == b"\n":
                continue
            where = f"{path} line {number}"
            if len(line) > reading.max_line_bytes:
                _skip_line(stream, line)
                yield Item(where, None, "line_too_long", "longer than ingest.max_line_bytes")
            elif line.strip():
                yield _json_line(where, line, "utf-8-sig" if number == 1 else "utf-8")


def _skip_line(stream: io.BufferedReader, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(CHUNK)


def _json_line(where: str, line: bytes, encoding: str) -> Item:
    try:
        return Item(where, json.loads(line.decode(encoding)))
    except json.JSONDecodeError as error:
        return Item(where, None, "broken_json", f"column {error.colno}: {error.msg}")
    except UnicodeDecodeError as error:
        return Item(where, None, "not_utf8", f"byte {error.start} of the line")
    except (RecursionError, ValueError) as error:  # an integer of thousands of digits is a ValueError
        return Item(where, None, "broken_json", str(error))


def _json_values(path: Path, reading: Reading) -> Iterator[Any]:
    with open_text(path, reading) as text:
        window = _Window(path, text, reading)
        if window.peek() == "[":
            yield from window.take_list()
            window.check_end()
        else:
            value = window.take()
            window.check_end()
            yield from _records_in(path, value, reading)


def _records_in(path: Path, value: Any, reading: Reading) -> list[Any]:
    """A record itself, or the values of the only list of objects in an object. Raises UserError for anything else."""
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a single {type(value).__name__}; expected a list of records")
    if shapes.is_record(value, reading.columns):
        return [value]
    lists = {key: inner for key, inner in value.items() if isinstance(inner, list)}
    if len(lists) > 1:
        lists = {key: inner for key, inner in lists.items() if any(isinstance(row, dict) for row in inner)}
    if len(lists) > 1 or (not lists and any(isinstance(inner, list) for inner in value.values())):
        raise UserError(
            f"{path}: an object with keys {', '.join(map(repr, list(value)[:8]))}; expected a list of records, "
            "a record, or an object with exactly one list of records in it: write each list to a file of its own"
        )
    return next(iter(lists.values())) if lists else [value]  # an object without a list is a record of unknown shape


class _Window:
    """The part of a JSON text that is in memory: it grows until the next value fits, and moves on behind it."""

    def __init__(self, path: Path, text: io.TextIOWrapper, reading: Reading) -> None:
        self._path, self._text, self._reading = path, text, reading
        self._buffer, self._start, self._ended = "", 0, False
        self._lines, self._column = 0, 0  # of the text before the buffer: its lines, and characters of its last line

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            self._start = WHITE_SPACE.match(self._buffer, self._start).end()  # type: ignore[union-attr]
            if self._start < len(self._buffer):
                return self._buffer[self._start]
            if self._ended:
                return ""
            self._grow()

    def take(self) -> Any:
        """The next value. Raises UserError with its place when it is broken or over the limit."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._buffer, self._start)
            except json.JSONDecodeError as error:
                if self._ended or self._is_final(error):
                    raise self._error(error.msg, error.pos) from error
            except (RecursionError, ValueError) as error:  # an integer of thousands of digits is a ValueError
                raise UserError(f"{self._path}: not usable JSON: {error}") from error
            else:
                if end < len(self._buffer) or self._ended:  # else a number may go on
                    if end - self._start > self._reading.max_line_bytes:
                        raise self._too_long()
                    self._start = end
                    return value
            if len(self._buffer) - self._start > self._reading.max_line_bytes:
                raise self._too_long()
            self._grow()

    def take_list(self) -> Iterator[Any]:
        """The values of the list that begins here."""
        self._start += 1
        if self.peek() != "]":
            yield self.take()
            while self.peek() == ",":
                self._start += 1
                yield self.take()
            if self.peek() != "]":
                raise self._error("Expecting ',' delimiter", self._start)
        self._start += 1

    def check_end(self) -> None:
        """Raises UserError when anything follows."""
        if self.peek():
            raise self._error("Extra data; a file with one object per line must end in .jsonl", self._start)

    def _grow(self) -> None:
        before = self._buffer[: self._start]
        lines = before.count("\n")
        self._column = len(before) - before.rfind("\n") - 1 if lines else self._column + len(before)
        self._lines += lines
        more = self._text.read(max(CHUNK, len(self._buffer) - self._start))  # twice as much: no quadratic time
        self._buffer, self._start, self._ended = self._buffer[self._start :] + more, 0, not more

    def _is_final(self, error: json.JSONDecodeError) -> bool:
        """Whether the mistake remains, however the text goes on."""
        return not error.msg.startswith("Unterminated string") and error.pos < len(self._buffer) - LONGEST_MARK

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column in the file, from 1."""
        newline = self._buffer.rfind("\n", 0, position)
        column = position - newline if newline >= 0 else self._column + position + 1
        return self._lines + self._buffer.count("\n", 0, position) + 1, column

    def _error(self, message: str, position: int) -> UserError:
        line, column = self._place(position)
        return UserError(f"{self._path} line {line} column {column}: not valid JSON: {message}")

    def _too_long(self) -> UserError:
        line, column = self._place(self._start)
        return self._reading.too_long(f"{self._path}: the value at line {line} column {column}")
