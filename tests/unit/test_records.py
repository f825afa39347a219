"""Records have the same id whatever their source; a table that exists is complete."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest

from components.core.errors import UserError
from components.data import tables
from components.data.records import Message, Record, iterate_records, make_record, read_records, write_records
from components.data.tables import Rejection, Removal


def conversation(source: str = "a", prompt: str = "Name a colour.", response: str = "Red.") -> Record:
    return make_record(source, [Message("user", prompt), Message("assistant", response)], {"line": 3})


def test_the_id_depends_only_on_the_messages() -> None:
    assert conversation("a").id == conversation("b").id
    assert conversation("a").id != conversation("a", response="Blue.").id
    # a changed id would break the provenance of every earlier run
    assert conversation().id == "d332356033a33f443fc33cf068655e3a"


def test_the_same_text_in_another_unicode_form_has_the_same_id() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert composed != decomposed
    assert conversation(response=composed).id == conversation(response=decomposed).id


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    records = [conversation(response=f"\u8272 {number}\n") for number in range(10)]
    write_records(tmp_path / "pool.parquet", records)
    assert read_records(tmp_path / "pool.parquet") == records
    assert list(iterate_records(tmp_path / "pool.parquet", batch_size=3)) == records


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_records(tmp_path / name, [conversation()])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("row", "schema"),
    [
        (Rejection("a", "a.jsonl line 1", None, "no_prompt", "nothing from the user", bad=True), tables.REJECTED),
        (Removal("1" * 32, "a", None, "over_cap", None), tables.DUPLICATES),
    ],
)
def test_a_row_is_written_with_the_columns_of_its_schema(
    tmp_path: Path, row: Rejection | Removal, schema: pa.Schema
) -> None:
    tables.write_rows(tmp_path / "rows.parquet", [row], schema)
    assert tables.read(tmp_path / "rows.parquet", schema).to_pylist() == [asdict(row)]
    tables.write_rows(tmp_path / "rows.parquet", [], schema)
    assert tables.read(tmp_path / "rows.parquet", schema) == schema.empty_table()


def test_a_failed_write_leaves_the_old_file_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    write_records(path, [conversation()])
    before = path.read_bytes()
    with pytest.raises(pa.ArrowInvalid):
        tables.write(path, pa.table({"id": ["not a number"]}), pa.schema([("id", pa.int32())]))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["pool.parquet"]


def test_the_error_for_a_missing_or_broken_table_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pool\.parquet: not found; `dvc repro` makes it"):
        read_records(tmp_path / "pool.parquet")
    (tmp_path / "pool.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=r"pool\.parquet: not a readable Parquet table"):
        read_records(tmp_path / "pool.parquet")
