"""The select stage as a process: its files and its mistakes, without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from components.core.paths import PARAMS
from components.data import tables
from components.data.records import Record, read_records, write_records
from tests.support.project import SOURCE, edit_params
from tests.support.selection import COMPLEXITY, eight_records, scores_of


@pytest.fixture
def records() -> list[Record]:
    return eight_records()


@pytest.fixture
def folder(tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the inputs of the stage, of which more records are wanted than are eligible."""
    monkeypatch.chdir(tmp_path)
    PARAMS.write_bytes((SOURCE / PARAMS).read_bytes())
    edit_params(tmp_path, {"select": {"ratio": 6}})
    write_records(Path("pool.parquet"), records)
    tables.write(Path("scores.parquet"), scores_of(records, COMPLEXITY), tables.SCORES)
    tables.write(Path("embeddings.parquet"), tables.EMBEDDINGS.empty_table(), tables.EMBEDDINGS)
    ids = pa.table({"id": [record.id for record in records]})
    tables.write(Path("base.parquet"), ids, tables.CANDIDATES)
    return tmp_path


ARGUMENTS = [
    *("--iteration", "1", "--pool", "pool.parquet", "--scores", "scores.parquet", "--parent-candidates"),
    *("base.parquet", "--selection", "selection.parquet", "--subset", "subset.parquet", "--candidates"),
    *("candidates.parquet", "--metrics", "metrics.json", "--histogram", "complexity.csv"),
    *("--embeddings", "embeddings.parquet"),
]


def run_stage(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from components import select; select.main(); assert 'torch' not in sys.modules"
    return subprocess.run(
        [sys.executable, "-c", code, *ARGUMENTS], cwd=folder, capture_output=True, text=True, check=False
    )


def column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table[name].to_pylist()
    return values


def test_the_stage_writes_the_subset_in_pick_order_and_says_when_it_is_short(
    folder: Path, records: list[Record]
) -> None:
    done = run_stage(folder)
    assert done.returncode == 0, done.stderr
    assert "select@1: 5 of 8 candidates (asked for 6; no more are eligible)" in done.stdout
    selection = tables.read(Path("selection.parquet"), tables.SELECTION)
    ranked = sorted(
        (rank, key) for rank, key in zip(column(selection, "rank"), column(selection, "id"), strict=True) if rank
    )
    subset = read_records(Path("subset.parquet"))
    assert [record.id for record in subset] == [key for _, key in ranked]
    assert all(record in records for record in subset)
    metrics = json.loads(Path("metrics.json").read_text(encoding="utf-8"))
    assert (metrics["pool"], metrics["candidates"], metrics["k"], metrics["selected"]) == (8, 8, 6, 5)
    assert metrics["sources"] == {"even": 1, "odd": 4}
    assert metrics["mean_complexity"] == 0.56
    assert list(metrics) == [
        *("pool", "candidates", "k", "selected", "mean_complexity", "mean_diversity", "mean_score", "sources")
    ]


def test_the_stage_writes_the_same_bytes_again(folder: Path) -> None:
    assert run_stage(folder).returncode == 0
    written = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert len(written) == 10
    assert run_stage(folder).returncode == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == written


def test_a_ratio_of_less_than_one_record_is_one_line(folder: Path) -> None:
    edit_params(folder, {"select": {"ratio": 0.1}})
    done = run_stage(folder)
    assert done.returncode == 2
    assert done.stderr == f"error: {PARAMS}: select.ratio: 0.1 of 8 records is not one record\n"
    assert not Path("subset.parquet").exists()
