"""What ingest promises: every value of every source becomes a record or a row that says why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.core.errors import UserError
from components.core.files import read_json, write_json
from components.core.settings.ingest import IngestSettings
from components.data import tables
from components.data.records import Message, make_record, read_records
from components.data_sources.file_manifest import list_files
from components.ingest import Ingested, ingest
from tests.support.project import SOURCE, edit_params

GOOD = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(40)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_lines(path: str, rows: list[Any]) -> dict[str, Any]:
    """Write JSONL (a text is a line as it is) and return the source that names it."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {"path": path}


def run(files: dict[str, dict[str, Any]], **settings: Any) -> Ingested:
    checked = IngestSettings.model_validate({"files": files, **settings})
    for name, source in checked.files.items():
        write_json(Path("manifests") / f"{name}.json", list_files(name, source))
    return ingest(checked, Path("manifests"))


def test_what_makes_no_record_is_listed_with_place_and_reason_and_the_run_goes_on() -> None:
    bad = [
        '{"instruction": ',
        ["a list"],
        {"instruction": "a", "output": " "},
        {"instruction": "", "output": "b"},
        {"instruction": "a", "output": 7},
        {"instruction": "a" * 80, "output": "b" * 21},
        {"something": "else"},
    ]
    source = write_lines("a.jsonl", [*GOOD[:20], *bad, *GOOD[20:]])
    result = run({"mine": source}, max_characters=100, max_rejected_share=0.2)
    assert len(result.records) == 40
    assert [(row["where"], row["reason"], row["bad"]) for row in result.rejected] == [
        ("a.jsonl line 21", "broken_json", True),
        ("a.jsonl line 22", "not_an_object", True),
        ("a.jsonl line 23", "no_response", True),
        ("a.jsonl line 24", "no_prompt", True),
        ("a.jsonl line 25", "not_text", True),
        ("a.jsonl line 26", "too_long", True),
        ("a.jsonl line 27", "unknown_shape", True),
    ]
    long = make_record("mine", [Message("user", "a" * 80), Message("assistant", "b" * 21)])
    assert [row["id"] for row in result.rejected] == [None] * 5 + [long.id, None]
    assert result.counts == {"mine": {"read": 47, "kept": 40, "rejected": 7, "over_cap": 0}}
    assert pa.Table.from_pylist(result.rejected, schema=tables.REJECTED).num_rows == 7


def test_a_record_says_where_it_stood_and_what_was_cut_off() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    (record,) = run({"mine": write_lines("a.jsonl", [{"messages": turns}])}).records
    assert (record.source, record.meta) == ("mine", {"where": "a.jsonl line 1", "cut_messages": 1})
    assert [message.role for message in record.messages] == ["user", "assistant"]


def test_sources_are_read_in_order_and_the_files_of_one_by_name() -> None:
    files = {
        "later": {"path": "folder"},
        "first": write_lines("z.jsonl", GOOD[:2]),
    }
    write_lines("folder/b.jsonl", GOOD[4:6])
    write_lines("folder/a.jsonl", GOOD[2:4])
    result = run(files)
    assert [record.source for record in result.records] == ["later"] * 4 + ["first"] * 2
    assert [record.response for record in result.records] == [GOOD[number]["output"] for number in (2, 3, 4, 5, 0, 1)]


def test_a_cap_keeps_a_sample_that_new_data_only_displace() -> None:
    whole = run({"mine": write_lines("a.jsonl", GOOD)})
    capped = run({"mine": {**write_lines("a.jsonl", GOOD), "cap": 10}})
    assert len(capped.records) == 10
    places = [whole.records.index(record) for record in capped.records]
    assert places == sorted(places) and places != list(range(10))
    over = capped.rejected
    assert {(row["reason"], row["bad"]) for row in over} == {("over_cap", False)}
    assert {row["id"] for row in over} | {record.id for record in capped.records} == {r.id for r in whole.records}
    more = [{"instruction": f"More {number}.", "output": f"{number}"} for number in range(10)]
    grown = run({"mine": {**write_lines("a.jsonl", more + GOOD), "cap": 10}})
    kept_before = {record.id for record in capped.records}
    new = {record.id for record in grown.records} - kept_before
    assert len(grown.records) == 10
    assert all(record.response.isdigit() for record in grown.records if record.id in new)


def test_more_bad_records_than_allowed_end_the_run_with_counts_and_a_first_example() -> None:
    bad = ["{", "{", {"instruction": "a", "output": ""}]
    source = write_lines("a.jsonl", [*GOOD[:17], *bad])
    assert len(run({"mine": source}, max_rejected_share=0.15).rejected) == 3
    with pytest.raises(UserError) as caught:
        run({"mine": source}, max_rejected_share=0.14)
    assert str(caught.value).startswith(
        "source mine: 3 of 20 records cannot be used (2 broken_json, 1 no_response), "
        "more than ingest.max_rejected_share 0.14; first: a.jsonl line 18: broken_json: "
    )


def test_records_over_a_cap_are_not_bad() -> None:
    result = run({"mine": {**write_lines("a.jsonl", GOOD), "cap": 1}}, max_rejected_share=0.0)
    assert result.counts["mine"] == {"read": 40, "kept": 1, "rejected": 0, "over_cap": 39}


def test_a_file_of_an_unknown_shape_ends_the_run_and_says_what_would_be_right() -> None:
    write_lines("folder/a.jsonl", GOOD)
    write_lines("folder/b.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises(UserError) as caught:
        run({"mine": {"path": "folder"}})
    said = str(caught.value)
    assert said.startswith("folder/b.jsonl line 1: keys 'question', 'answer'; known are ")
    for word in ("instruction/input/output", "instruction/context/response", "conversations", "messages", "columns"):
        assert word in said
    named = {"path": "folder/b.jsonl", "columns": {"prompt": "question", "response": "answer"}}
    assert run({"mine": named}).records[0].response == "b"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": "q", "response": "answer"}, "a.jsonl line 1: no column 'q'; there are 'question', 'answer'"),
        (
            {"prompt": "question", "response": "answer", "input": "contxt"},
            "source mine: no record has a column 'contxt', which the source's columns name",
        ),
    ],
)
def test_a_column_that_is_not_there_is_named(columns: dict[str, str], said: str) -> None:
    source = {**write_lines("a.jsonl", [{"question": "a", "answer": "b"}]), "columns": columns}
    with pytest.raises(UserError) as caught:
        run({"mine": source})
    assert str(caught.value) == said


def test_empty_sources_are_fine_as_long_as_one_has_a_record() -> None:
    Path("empty").mkdir()
    good = write_lines("a.jsonl", GOOD)
    assert run({"incoming": {"path": "empty"}, "mine": good}).counts["incoming"]["read"] == 0
    with pytest.raises(UserError, match=r"params\.yaml: ingest: no source holds a record \(incoming\)"):
        run({"incoming": {"path": "empty"}})


def test_only_what_the_manifest_names_is_read() -> None:
    write_lines("folder/a.jsonl", GOOD[:1])
    settings = IngestSettings.model_validate({"files": {"mine": {"path": "folder"}}})
    write_json(Path("manifests/mine.json"), list_files("mine", settings.files["mine"]))
    write_lines("folder/b.jsonl", GOOD[1:2])
    assert len(ingest(settings, Path("manifests")).records) == 1
    write_lines("folder/a.jsonl", GOOD[2:3])
    with pytest.raises(UserError, match=r"folder/a\.jsonl: not what it was"):
        ingest(settings, Path("manifests"))


def test_a_saved_dataset_is_a_source(folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(GOOD).save_to_disk(str(folder / "saved"))
    settings = IngestSettings.model_validate({"files": {}, "datasets": {"saved": {"name": "saved"}}})
    result = ingest(settings, folder)
    assert [record.response for record in result.records] == [row["output"] for row in GOOD]
    assert result.records[1].meta == {"where": "saved train row 2"}


def command(stage: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"components.{stage}", *options],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )


INGEST = "--manifests m --records raw.parquet --rejected rejected.parquet --metrics metrics.json".split()  # noqa: SIM905


def test_the_stages_write_tables_and_counts_and_load_no_torch(folder: Path) -> None:
    (folder / "params.yaml").write_bytes((SOURCE / "params.yaml").read_bytes())
    edit_params(folder, {"ingest": {"docstrings": {}, "files": {"incoming": {"path": "in"}}, "datasets": {}}})
    write_lines("in/a.jsonl", [*GOOD, '{"instruction"'])
    listed = command("manifest", "--source", "incoming", "--manifest", "m/incoming.json")
    assert listed.returncode == 0, listed.stderr[-2000:]
    Path("m/gone.json").write_text('{"files": [], "ignored": []}')
    ended = command("ingest", *INGEST)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout == "ingest: incoming: 41 read, 40 kept, 1 rejected, 0 over_cap\n"
    assert len(read_records(Path("raw.parquet"))) == 40
    assert tables.read(Path("rejected.parquet"), tables.REJECTED)["reason"].to_pylist() == ["broken_json"]
    assert read_json(Path("metrics.json")) == {
        "records": 40,
        "sources": {"incoming": {"read": 41, "kept": 40, "rejected": 1, "over_cap": 0}},
    }
    assert [manifest.name for manifest in Path("m").iterdir()] == ["incoming.json"]  # as in a fresh clone
    before = Path("raw.parquet").read_bytes()
    assert command("ingest", *INGEST).returncode == 0
    assert Path("raw.parquet").read_bytes() == before
    for process in (listed, ended):
        loaded = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
        assert "components.settings" in loaded
        assert not loaded & {"torch", "transformers", "mlflow", "datasets", "sklearn"}


def test_a_mistake_ends_a_stage_with_one_line_and_leaves_nothing_behind(folder: Path) -> None:
    (folder / "params.yaml").write_bytes((SOURCE / "params.yaml").read_bytes())
    edit_params(folder, {"ingest": {"docstrings": {}, "files": {"mine": {"path": "a.parquet"}}, "datasets": {}}})
    pq.write_table(pa.Table.from_pylist(GOOD), "a.parquet")
    Path("a.parquet").write_bytes(Path("a.parquet").read_bytes()[:-40])
    assert command("manifest", "--source", "mine", "--manifest", "m/mine.json").returncode == 0
    ended = command("ingest", *INGEST)
    said = [line for line in ended.stderr.splitlines() if not line.startswith("import time:")]
    assert ended.returncode == 2
    assert len(said) == 1 and said[0].startswith("error: a.parquet: cannot be read: ")
    assert not list(folder.glob("*raw*")) and not list(folder.glob("*rejected*"))
    other = command("manifest", "--source", "typo", "--manifest", "m/typo.json")
    assert other.returncode == 2
    assert "error: params.yaml: ingest.files: no source 'typo'; there are mine" in other.stderr
