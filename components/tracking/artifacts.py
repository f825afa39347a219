"""TODO"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from components.data.records import from_rows
from components.provenance.lockfile import StageEntry
from components.tracking.client import client

if TYPE_CHECKING:
    pass


# The records that a stage works on, as MLflow's dataset inputs: path below the project, name, context.
DATASETS = {
    "dedupe": [("data/pool.parquet", "pool", "training"), ("data/holdout.parquet", "holdout", "evaluation")],
    "score": [("data/pool.parquet", "pool", "evaluation")],
    "select": [("data/pool.parquet", "pool", "training")],
    "finetune": [("data/iterations/{key}/subset.parquet", "subset-{key}", "training")],
    "evaluate": [("data/holdout.parquet", "holdout", "evaluation")],
    "evaluate_base": [("data/holdout.parquet", "holdout", "evaluation")],
}


LARGEST_ARTIFACT = 64 << 20  # bytes; a larger table is named by its hash, DVC has its bytes


PREVIEW_ROWS = 1000  # of a table, as CSV, which MLflow's page can show


def log_datasets(run_id: str, name: str, key: str, entry: StageEntry) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    hashes = {**entry.dependencies, **entry.outputs}
    inputs = []
    for pattern, title, context in DATASETS.get(name, ()):
        path = pattern.format(key=key)
        # MLflow's own digest of a table sees its first 10,000 rows only; this is DVC's MD5 of the whole file
        dataset = Dataset(title.format(key=key), hashes[path], "local", json.dumps({"uri": path}))
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    if inputs:
        client().log_inputs(run_id, inputs)


def log_artifacts(run_id: str, entry: StageEntry) -> None:
    """Every file that the stage wrote, tables also as CSV; folders (models, trainer states) are named by their hash."""
    for path in map(Path, entry.outputs):
        if path.is_file() and path.stat().st_size <= LARGEST_ARTIFACT:
            place = path.parent.as_posix()  # as in the project: samples/1.json is not metrics/evaluate/1.json
            client().log_artifact(run_id, str(path), place)
            if path.suffix == ".parquet":
                with tempfile.TemporaryDirectory() as folder:
                    preview = Path(folder) / f"{path.stem}.csv"
                    write_preview(path, preview)
                    client().log_artifact(run_id, str(preview), place)


def write_preview(table_file: Path, file: Path) -> None:
    """The first rows of a Parquet table as CSV; the messages of a record become its prompt and its response."""
    with pq.ParquetFile(table_file) as opened:
        first = next(opened.iter_batches(PREVIEW_ROWS), None)
        table = pa.Table.from_batches([first] if first is not None else [], schema=opened.schema_arrow)
    if "messages" in table.schema.names:
        rows = [
            {"id": record.id, "source": record.source, "prompt": record.prompt, "response": record.response}
            for record in from_rows(table.to_pylist())
        ]
        table = pa.Table.from_pylist(
            rows, pa.schema([(name, pa.string()) for name in ("id", "source", "prompt", "response")])
        )
    arrow_csv.write_csv(table, file)
