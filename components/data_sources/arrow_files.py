"""Readers of Parquet and of Arrow's stream format. Only the columns that a record is made of are converted."""

from __future__ import annotations

import resource
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import UserError, first_line
from components.data_sources import shapes
from components.data_sources.item import Item, Items
from components.data_sources.reading import CODECS, Reading, open_bytes

ROWS = 1024  # that are converted at a time
MEMORY = 640 << 20  # bytes that decoding a batch of rows may take, beyond what the process already has
AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}


def read_parquet(path: Path, reading: Reading) -> Items:
    """The rows of a Parquet file."""
    with _seekable(path, reading) as source, pq.ParquetFile(source) as file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        if sum(group.total_byte_size for group in groups) > reading.max_file_bytes:
            raise reading.too_large(path)
        names = file.schema_arrow.names
        wanted = wanted_columns(path, names, reading)
        yield from _items(path, file.iter_batches(ROWS, columns=wanted, use_threads=False), names)


def read_arrow(path: Path, reading: Reading) -> Items:
    """Arrow's stream format, in which `save_to_disk` of `datasets` writes the data files of a folder."""
    with open_bytes(path, reading) as stream, pa.ipc.open_stream(stream) as batches:
        names = batches.schema.names
        wanted = wanted_columns(path, names, reading)
        yield from _items(path, (batch.select(wanted) for batch in batches), names)


def wanted_columns(where: Path | str, names: list[str], reading: Reading) -> list[str]:
    """The columns that a record is made of, or all where their names are no known shape, so that an error can tell.

    Raises UserError for two columns of the same name.
    """
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: column {repeated[0]!r} occurs twice; rename one of them")
    if not shapes.has_known_names(names, reading.columns):
        return names
    keys = shapes.keys_read(reading.columns)
    return [name for name in names if name in keys]


def validate(where: Path | str, batch: pa.RecordBatch | pa.Table) -> None:
    """Raises UserError when a value of a corrupted file would be read from anywhere in memory.

    Text of a column that is not UTF-8 is left to the conversion, which names its row.
    """
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            (column.cast(AS_BYTES[column.type]) if column.type in AS_BYTES else column).validate(full=True)
        except pa.ArrowException as error:
            raise UserError(f"{where}: column {name!r}: cannot be read: {first_line(error)}") from error


def convert_rows(batch: pa.RecordBatch | pa.Table, names: list[str]) -> Iterator[tuple[Any, str | None, str]]:
    """Value, reason and detail of each row. A column of `names` that the batch lacks is None in every value."""
    columns: dict[str, list[Any]] = {}
    broken: dict[int, tuple[str, str]] = {}
    for name in batch.schema.names:
        columns[name], failed = _convert(batch[name])
        broken |= {row: (reason, f"column {name!r}: {detail}") for row, (reason, detail) in failed.items()}
    for row in range(batch.num_rows):
        if row in broken:
            yield (None, *broken[row])
        else:
            yield {name: columns[name][row] if name in columns else None for name in names}, None, ""


def _convert(column: Any) -> tuple[list[Any], dict[int, tuple[str, str]]]:
    """The column's values, and for each row whose value Python cannot hold, the reason and the detail."""
    try:
        return column.to_pylist(), {}
    except (ValueError, OverflowError, pa.ArrowException):  # text that is not UTF-8, dates out of range
        values: list[Any] = []
        broken = {}
        for row, value in enumerate(column):
            try:
                values.append(value.as_py())
            except UnicodeDecodeError as error:
                values.append(None)
                broken[row] = ("not_utf8", f"byte {error.start} of the text")
            except (ValueError, OverflowError, pa.ArrowException) as error:
                values.append(None)
                broken[row] = ("not_text", first_line(error))
        return values, broken


def _items(path: Path, batches: Iterable[pa.RecordBatch], names: list[str]) -> Items:
    number, iterator = 0, iter(batches)
    while True:
        with _bounded_memory(path):
            batch = next(iterator, None)
            if batch is None:
                return
            validate(path, batch)
        for start in range(0, batch.num_rows, ROWS):
            with _bounded_memory(path):
                rows = list(convert_rows(batch.slice(start, ROWS), names))
            for value, reason, detail in rows:
                number += 1
                yield Item(f"{path} row {number}", value, reason, detail)


@contextmanager
def _bounded_memory(path: Path) -> Iterator[None]:
    """Let the block allocate MEMORY more bytes: a few bytes of a file can stand for many gigabytes.

    Raises UserError when it needs more.
    """
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])  # data and stack
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = pages * resource.getpagesize() + MEMORY
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    except MemoryError as error:  # of Python, or of Arrow
        raise UserError(
            f"{path}: a batch of rows takes more than {MEMORY >> 20} MiB in memory; write it in smaller batches or "
            "look for a value that is repeated without end"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def _seekable(path: Path, reading: Reading) -> Iterator[Any]:
    """The decompressed file to read from its end, as Parquet is."""
    if path.suffix.lower() not in CODECS:
        if path.stat().st_size > reading.max_file_bytes:
            raise reading.too_large(path)
        with pa.OSFile(str(path)) as file:
            yield file
        return
    with open_bytes(path, reading) as stream, tempfile.TemporaryFile() as plain:
        shutil.copyfileobj(stream, plain, 1 << 20)
        yield plain
