"""Previews of tables are safe to open in a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import printable
from components.data.records import Message, make_record, write_records
from components.tracking.artifacts import write_preview


def test_no_cell_of_a_preview_is_a_formula(tmp_path: Path) -> None:
    starts = ["=1+1", "+1", "-1", "@a", "\ta", "\ra", "a=1", ""]
    records = [make_record("s", [Message("user", text), Message("assistant", "=cmd")]) for text in starts]
    write_records(tmp_path / "a.parquet", records)
    write_preview(tmp_path / "a.parquet", tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [printable(row["prompt"]) for row in rows] == [
        *(printable(f"'{text}") for text in starts[:-2]),
        *starts[-2:],
    ]
    assert {row["response"] for row in rows} == {"'=cmd"}


def test_numbers_and_nulls_of_a_preview_stay_as_they_are(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"loss": [-1.5, None], "reason": pa.array([None, "-"], pa.string())}), tmp_path / "a.parquet"
    )
    write_preview(tmp_path / "a.parquet", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == '"loss","reason"\n-1.5,\n,"\'-"\n'


def test_a_preview_leaves_out_columns_of_lists(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "embedding": [[0.5, 0.5]]}), tmp_path / "a.parquet")
    write_preview(tmp_path / "a.parquet", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == '"id"\n"a"\n'
