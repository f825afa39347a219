"""The Arrow schema of every table that a stage writes, and how its Parquet file is written and read.

No table holds a clock time, a host name or an absolute path: the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        ("meta", pa.string()),  # JSON object: where the record came from, how many messages were cut off
    ]
)


REJECTED = pa.schema(  # the values of a source that are not in data/raw.parquet
    [
        ("source", pa.string()),
        ("where", pa.string()),  # file and line, record or row
        ("id", pa.string()),  # null where the value made no record
        ("reason", pa.string()),  # one word, such as broken_json, no_response, too_long: docs/data.md lists them
        ("detail", pa.string()),
        ("bad", pa.bool_()),  # counts toward ingest.max_rejected_share; false for a record over a cap
    ]
)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row of REJECTED."""

    source: str
    where: str
    id: str | None
    reason: str
    detail: str
    bad: bool


DUPLICATES = pa.schema(  # the records of data/raw.parquet that are neither in the pool nor in the holdout
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("kept_id", pa.string()),  # the record that is kept instead, or the target; null for kind over_cap
        ("kind", pa.string()),  # same_record, same_response, near, near_holdout, like_target, ...: docs/data.md
        ("similarity", pa.float64()),  # Jaccard similarity of word n-grams; 1.0 for same_record and same_response
    ]
)


@dataclass(frozen=True, slots=True)
class Removal:
    """A row of DUPLICATES."""

    id: str
    source: str
    kept_id: str | None
    kind: str
    similarity: float | None


NOISE = pa.schema(  # the records of the pool that are spoiled on purpose (noise in params.yaml)
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("original", pa.string()),  # id of the record that stood there before
    ]
)


CANDIDATES = pa.schema([("id", pa.string())])  # the records that the next iteration scores, in ranking order


SCORES = pa.schema(
    [
        ("id", pa.string()),
        ("response_tokens", pa.int32()),  # scored positions, end-of-turn tokens included
        ("nll_conditional", pa.float64()),  # nats per token
        ("nll_unconditional", pa.float64()),  # nats per token
        ("complexity", pa.float64()),
        ("reason", pa.string()),  # why the record is unscorable; null for a scored record
    ]
)


EMBEDDINGS = pa.schema(  # the targets, then the candidates; empty unless score.measure is embedding
    [
        ("id", pa.string()),
        ("target", pa.bool_()),
        ("embedding", pa.list_(pa.field("element", pa.float32()))),  # of length 1, equally many numbers in each row
    ]
)


EVALUATIONS = pa.schema(  # one row per record of the holdout, or of data/target.parquet
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("tokens", pa.int32()),  # scored positions of the response, end-of-turn tokens included
        ("nll_conditional", pa.float64()),  # nats per token; this and the next two are null for an unscorable record
        ("nll_unconditional", pa.float64()),  # nats per token
        ("complexity", pa.float64()),
    ]
)


ANSWERS = pa.schema(  # one row per record of the holdout that is answered (evaluate.rouge)
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("answer", pa.string()),  # generated greedily; null where the chat template refuses the prompt
        ("rouge_l", pa.float64()),  # from 0 to 1; null where the reference has no word
    ]
)


BENCHMARK_TEXTS = pa.schema(  # one row per document of a benchmark's tasks
    [
        ("task", pa.string()),
        ("document", pa.int32()),  # number in the task's data, from 0
        ("text", pa.string()),  # question and answers, one line each
    ]
)


BENCHMARKS = pa.schema(  # one row per document and metric of a checkpoint's benchmarks
    [
        ("task", pa.string()),
        ("document", pa.int32()),  # number in the task's data, from 0
        ("digest", pa.string()),  # SHA-256 of the document's data
        ("metric", pa.string()),  # with its filter after a slash, where the task has filters
        ("value", pa.float64()),  # of a perplexity: nats per word or byte; of bits_per_byte: bits per byte
        ("weight", pa.float64()),  # words or bytes of a perplexity; 1 for any other metric
        ("higher_is_better", pa.bool_()),  # of `value`
    ]
)


OVERLAPS = pa.schema(  # one row per record that shares words with the holdout or a benchmark, and document of these
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("place", pa.string()),  # pool, or the kind in data/duplicates.parquet: near_holdout, contaminated
        ("against", pa.string()),  # holdout, or a task
        ("against_id", pa.string()),  # record of the holdout, or number of the task's document
        ("ngrams", pa.int32()),  # n-grams of the record that are in that text, each place counted
        ("word", pa.int32()),  # where the first of them begins in the record's words, from 0
        ("against_word", pa.int32()),  # where it begins in that text's words
    ]
)


MEASURES = pa.schema(  # one row per measure and record of a comparison's cell (docs/compare.md)
    [
        ("measure", pa.string()),  # holdout loss, or task and metric of a benchmark
        ("id", pa.string()),  # record of the holdout, or number of the task's document
        ("value", pa.float64()),
        ("weight", pa.float64()),  # tokens for a loss
        ("higher_is_better", pa.bool_()),
    ]
)


SELECTION = pa.schema(
    [
        ("id", pa.string()),
        ("rank", pa.int32()),  # order of the picks, from 1; null when not selected
        ("complexity", pa.float64()),
        ("diversity", pa.float64()),  # at the time of the pick; null when not selected
        ("score", pa.float64()),
        ("status", pa.string()),  # selected, eligible, not_eligible, misaligned, unscorable, not_a_candidate
        ("reason", pa.string()),  # why the record has this status
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
    """Write the columns of the schema to a Parquet file, cast to the schema's types."""
    with atomic_write(path) as temporary:
        pq.write_table(table.select(schema.names).cast(schema), temporary, compression="zstd")


def write_rows(path: Path, rows: Sequence[Rejection] | Sequence[Removal], schema: pa.Schema) -> None:
    """Write one row for each dataclass, whose fields are the columns of the schema."""
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    write(path, pa.table(columns, schema=schema), schema)


def read(path: Path, schema: pa.Schema) -> pa.Table:
    """The columns of the schema. Raises UserError when the file is missing or not such a table."""
    require_file(path)
    try:
        # pq.read_table would import pyarrow.dataset, which imports pandas
        with pq.ParquetFile(path) as file:
            return file.read().select(schema.names).cast(schema)
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet table: {first_line(error)}") from error


def read_ids(path: Path) -> list[str]:
    """The column `id` of a table. Raises UserError as `read` does."""
    ids: list[str] = read(path, CANDIDATES)["id"].to_pylist()
    return ids
