"""How data files are opened: decompressed, and never past the limits that params.yaml sets."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.core.errors import UserError
from components.core.paths import PARAMS
from components.core.settings.ingest import Columns, IngestSettings

CODECS = {".gz": "gzip", ".zst": "zstd"}
BUFFER = 1 << 20  # bytes that are decompressed at a time
FIELDS = IngestSettings.model_fields


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader has to know of the source: its columns, and the limits of params.yaml."""

    columns: Columns | None = None
    max_line_bytes: int = FIELDS["max_line_bytes"].default
    max_file_bytes: int = FIELDS["max_file_bytes"].default

    def too_long(self, where: str) -> UserError:
        """The error for a line, row or value over the limit."""
        return UserError(f"{where}: longer than {self.max_line_bytes:,} bytes ({PARAMS}: ingest.max_line_bytes)")

    def too_large(self, path: Path) -> UserError:
        """The error for a file over the limit."""
        return UserError(
            f"{path}: more than {self.max_file_bytes:,} bytes after decompression ({PARAMS}: ingest.max_file_bytes)"
        )


class BoundedStream(io.RawIOBase):
    """The bytes of a stream, up to the limit of a file; reading past it raises UserError."""

    def __init__(self, stream: Any, path: Path, reading: Reading) -> None:
        self._stream, self._path, self._reading = stream, path, reading
        self._left = reading.max_file_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise self._reading.too_large(self._path)
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_bytes(path: Path, reading: Reading) -> Iterator[io.BufferedReader]:
    """A stream of the file's bytes, decompressed."""
    codec = CODECS.get(path.suffix.lower())
    with pa.OSFile(str(path)) if codec is None else pa.input_stream(str(path), compression=codec) as stream:
        yield io.BufferedReader(BoundedStream(stream, path, reading), BUFFER)


@contextmanager
def open_text(path: Path, reading: Reading) -> Iterator[io.TextIOWrapper]:
    """A stream of the file's text, decompressed, decoded and without a byte order mark."""
    with open_bytes(path, reading) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        yield text
