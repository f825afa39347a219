"""The files of a stage in its child run: tables as artifacts with a preview, records as dataset inputs."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from components.data.records import from_rows
from components.provenance.lockfile import StageEntry
from components.tracking.client import client, explain_unreachable

MAX_ARTIFACT = 64 << 20  # bytes; DVC keeps a larger file, and the run's tags hold its hash
PREVIEW_ROWS = 1000  # MLflow's page shows CSV, not Parquet
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet runs
PREVIEW_COLUMNS = ("id", "source", "prompt", "response")  # of a table of records


@dataclass(frozen=True, slots=True)
class RecordsTable:
    """A table of records that a stage works on; `{key}` stands for the stage's key."""

    path: str
    name: str
    context: str
    """MLflow's word for its use: `training` or `evaluation`."""


DATASETS = {
    "dedupe": [
        RecordsTable("data/pool.parquet", "pool", "training"),
        RecordsTable("data/holdout.parquet", "holdout", "evaluation"),
    ],
    "score": [RecordsTable("data/pool.parquet", "pool", "evaluation")],
    "select": [RecordsTable("data/pool.parquet", "pool", "training")],
    "finetune": [RecordsTable("data/iterations/{key}/subset.parquet", "subset-{key}", "training")],
    "evaluate": [RecordsTable("data/holdout.parquet", "holdout", "evaluation")],
    "evaluate_base": [RecordsTable("data/holdout.parquet", "holdout", "evaluation")],
}


def log_datasets(run_id: str, stage: str, entry: StageEntry) -> None:
    """Log the tables of records that the stage works on as MLflow's dataset inputs."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, _, key = stage.partition("@")
    hashes = {**entry.dependencies, **entry.outputs}
    inputs = []
    for table in DATASETS.get(name, ()):
        path = table.path.format(key=key)
        # MLflow's own digest covers the first 10,000 rows only, DVC's MD5 the whole file
        dataset = Dataset(table.name.format(key=key), hashes[path], "local", json.dumps({"uri": path}))
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", table.context)]))
    if inputs:
        client().log_inputs(run_id, inputs)


def log_artifacts(run_id: str, entry: StageEntry) -> None:
    """Log every file that the stage wrote, a table also as CSV. Folders (models, trainer states) stay with DVC."""
    for path in map(Path, entry.outputs):
        if path.is_file() and path.stat().st_size <= MAX_ARTIFACT:
            place = path.parent.as_posix()  # as in the project: samples/1.json is not metrics/evaluate/1.json
            client().log_artifact(run_id, str(path), place)
            if path.suffix == ".parquet":
                with tempfile.TemporaryDirectory() as folder:
                    preview = Path(folder) / f"{path.stem}.csv"
                    write_preview(path, preview)
                    client().log_artifact(run_id, str(preview), place)


def log_file(run_id: str, file: Path) -> None:
    """Log a file at the top of a run's artifacts. Raises Unreachable."""
    with explain_unreachable():
        client().log_artifact(run_id, str(file))


def write_preview(table_file: Path, csv_file: Path) -> None:
    """Write the first rows of a Parquet table as CSV; of a table of records, the prompts and responses."""
    with pq.ParquetFile(table_file) as parquet:
        batch = next(parquet.iter_batches(PREVIEW_ROWS), None)
        table = pa.Table.from_batches([batch] if batch is not None else [], schema=parquet.schema_arrow)
    if "messages" in table.schema.names:
        rows = [{name: getattr(record, name) for name in PREVIEW_COLUMNS} for record in from_rows(table.to_pylist())]
        table = pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in PREVIEW_COLUMNS]))
    table = table.drop_columns(
        [field.name for field in table.schema if pa.types.is_nested(field.type)]
    )  # no CSV has lists
    arrow_csv.write_csv(pa.table([_inert(column) for column in table.columns], table.schema), csv_file)


def _inert(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text with an apostrophe before what a spreadsheet would run as a formula; any other column as it is."""
    if not pa.types.is_string(column.type):
        return column
    texts = [f"'{text}" if text is not None and text.startswith(FORMULA) else text for text in column.to_pylist()]
    return pa.chunked_array([texts], column.type)
