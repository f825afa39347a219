"""The table of embeddings, which may be larger than the memory: written and read a part at a time.

Its first rows are the examples of the target, its others the candidates (EMBEDDINGS in tables.py). A record that has
nothing to score has no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import UserError, first_line
from components.core.files import atomic_write, require_file
from components.data import tables

Matrix = npt.NDArray[np.float32]

ROWS = 4096  # that are read at a time: 67 MB at 4,096 numbers each


@contextmanager
def embeddings_writer(path: Path) -> Iterator[Callable[[Sequence[str], Matrix, bool], None]]:
    """Yield the function that appends rows: ids, embeddings of shape (ids, width), and whether they are targets."""
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, tables.EMBEDDINGS, compression="zstd") as file:

        def append(ids: Sequence[str], embeddings: Matrix, is_target: bool) -> None:
            if len(ids):
                columns = [pa.array(ids, pa.string()), pa.array([is_target] * len(ids)), as_lists(embeddings)]
                file.write_table(pa.table(columns, schema=tables.EMBEDDINGS))

        yield append


def as_lists(embeddings: Matrix) -> pa.ListArray:
    """The rows as a column of a table."""
    count, width = embeddings.shape
    offsets = pa.array(np.arange(count + 1) * width, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(embeddings.ravel(), pa.float32()))


def as_matrix(column: pa.ListArray) -> Matrix:
    """The column's lists, which have equal lengths and are not null, as rows of a matrix."""
    values: Matrix = column.flatten().to_numpy()
    return values.reshape(len(column), -1) if len(column) else np.empty((0, 0), np.float32)


def read_targets(path: Path) -> Matrix:
    """The embeddings of the targets. Raises UserError when the file is missing or not such a table."""
    found = [rows for _, rows in _read_parts(path, targets=True)]
    return np.concatenate(found) if found else np.empty((0, 0), np.float32)


def iterate_candidates(path: Path) -> Iterator[tuple[list[str], Matrix]]:
    """Ids and embeddings of the candidates, a part at a time. Raises UserError as read_targets does."""
    return _read_parts(path, targets=False)


def _read_parts(path: Path, *, targets: bool) -> Iterator[tuple[list[str], Matrix]]:
    require_file(path)
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS, columns=tables.EMBEDDINGS.names):
                mark = batch.column("target")
                part = batch.filter(mark if targets else pa.compute.invert(mark))
                if part.num_rows:
                    yield part.column("id").to_pylist(), as_matrix(part.column("embedding"))
                elif targets and batch.num_rows:
                    return  # they come first
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet table: {first_line(error)}") from error
