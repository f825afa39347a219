"""The Arrow schema of every table that a stage writes, and the Parquet files that hold them.

Nothing in a table is a clock time, a host name or an absolute path: the same input gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import UserError, first_line
from components.core.files import atomic_write, require_file

RECORDS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("meta", pa.string()),  # JSON object: where the record came from (file, line, qualified name, ...)
    ]
)


REJECTED = pa.schema(  # what a source held and the pool does not
    [
        ("source", pa.string()),
        ("where", pa.string()),  # file and line or row, as a person would look it up
        ("id", pa.string()),  # null where the record could not be read
        ("reason", pa.string()),  # a word: unreadable, no_response, not_text, no_prompt, too_long, over_cap, ...
        ("detail", pa.string()),
        ("bad", pa.bool_()),  # counts toward ingest.max_rejected_share; a record over a cap is not bad
    ]
)


DUPLICATES = pa.schema(
    [
        ("id", pa.string()),  # removed
        ("source", pa.string()),
        ("kept_id", pa.string()),  # in favour of; null for kind over_cap
        ("kind", pa.string()),  # same_record, same_response, near, near_holdout, over_cap
        ("similarity", pa.float64()),  # Jaccard over word n-grams; 1.0 for the exact kinds
    ]
)


CANDIDATES = pa.schema([("id", pa.string())])  # what the next iteration scores, in ranking order


SCORES = pa.schema(
    [
        ("id", pa.string()),
        ("response_tokens", pa.int32()),  # scored positions, end-of-turn included
        ("nll_conditional", pa.float64()),  # nats per token
        ("nll_unconditional", pa.float64()),
        ("complexity", pa.float64()),
        ("reason", pa.string()),  # null, or why the record is unscorable
    ]
)


SELECTION = pa.schema(
    [
        ("id", pa.string()),
        ("rank", pa.int32()),  # pick order from 1; null when not selected
        ("complexity", pa.float64()),
        ("diversity", pa.float64()),  # at the time of the pick; null when not selected
        ("score", pa.float64()),
        ("status", pa.string()),  # selected, eligible, not_eligible, misaligned, unscorable, not_a_candidate
        ("reason", pa.string()),
    ]
)


STEPS = pa.schema(  # one row per optimizer step
    [
        ("step", pa.int32()),
        ("iteration", pa.string()),
        ("loss", pa.float64()),
        ("learning_rate", pa.float64()),
        ("gradient_norm", pa.float64()),
    ]
)


def write(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    with atomic_write(path) as temporary:
        pq.write_table(table.select(schema.names).cast(schema), temporary, compression="zstd")


def read(path: Path, schema: pa.Schema) -> pa.Table:
    """Raises UserError when the file is not there or is not such a table."""
    require_file(path)
    try:
        # not pq.read_table: it imports pyarrow.dataset, and that pandas, for 1 s
        with pq.ParquetFile(path) as file:
            return file.read().select(schema.names).cast(schema)
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet table: {first_line(error)}") from error
