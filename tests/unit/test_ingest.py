"""Every value of every source becomes a record or a rejection with place and reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import UserError
from components.core.settings.ingest import IngestSettings
from components.data.records import Message, Record, make_record
from components.data.tables import Rejection
from components.data_sources.file_manifest import list_files, write_manifest
from components.ingest import Ingested, IngestSummary, SourceCounts, has_record, ingest

GOOD = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(40)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_lines(path: str, rows: list[Any]) -> dict[str, Any]:
    """Write JSONL, text rows unchanged, and return the source with its path."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {"path": path}


@dataclass(frozen=True, slots=True)
class Whole:
    """The records of the sources that are no target, and what was read beside them."""

    records: list[Record]
    beside: Ingested

    @property
    def rejected(self) -> list[Rejection]:
        return self.beside.rejected

    @property
    def counts(self) -> dict[str, SourceCounts]:
        return self.beside.counts

    @property
    def targets(self) -> list[Record]:
        return self.beside.targets

    def summary(self) -> IngestSummary:
        return self.beside.summary()


def whole(settings: IngestSettings, manifests: Path) -> Whole:
    records: list[Record] = []
    beside = ingest(settings, manifests, records.append)
    assert beside.records == len(records)
    return Whole(records, beside)


def run(files: dict[str, dict[str, Any]], **settings: Any) -> Whole:
    checked = IngestSettings.model_validate({"files": files, **settings})
    for name, source in checked.files.items():
        write_manifest(Path("manifests") / f"{name}.json", list_files(name, source))
    return whole(checked, Path("manifests"))


def test_a_value_that_makes_no_record_is_listed_with_place_and_reason_and_the_others_are_read() -> None:
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
    assert [(row.where, row.reason, row.bad) for row in result.rejected] == [
        ("a.jsonl line 21", "broken_json", True),
        ("a.jsonl line 22", "not_an_object", True),
        ("a.jsonl line 23", "no_response", True),
        ("a.jsonl line 24", "no_prompt", True),
        ("a.jsonl line 25", "not_text", True),
        ("a.jsonl line 26", "too_long", True),
        ("a.jsonl line 27", "unknown_shape", True),
    ]
    long = make_record("mine", [Message("user", "a" * 80), Message("assistant", "b" * 21)])
    assert [row.id for row in result.rejected] == [None] * 5 + [long.id, None]
    assert result.counts == {"mine": SourceCounts(read=47, kept=40, rejected=7, over_cap=0)}


def test_the_meta_of_a_record_has_its_place_and_the_number_of_messages_cut_off() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    (record,) = run({"mine": write_lines("a.jsonl", [{"messages": turns}])}).records
    assert (record.source, record.meta) == ("mine", {"where": "a.jsonl line 1", "cut_messages": 1})
    assert [message.role for message in record.messages] == ["user", "assistant"]


def test_sources_are_read_in_order_and_the_files_of_a_source_by_name() -> None:
    files = {
        "later": {"path": "folder"},
        "first": write_lines("z.jsonl", GOOD[:2]),
    }
    write_lines("folder/b.jsonl", GOOD[4:6])
    write_lines("folder/a.jsonl", GOOD[2:4])
    result = run(files)
    assert [record.source for record in result.records] == ["later"] * 4 + ["first"] * 2
    assert [record.response for record in result.records] == [GOOD[number]["output"] for number in (2, 3, 4, 5, 0, 1)]


def test_a_cap_keeps_a_sample_that_only_new_records_can_change() -> None:
    uncapped = run({"mine": write_lines("a.jsonl", GOOD)})
    capped = run({"mine": {**write_lines("a.jsonl", GOOD), "cap": 10}})
    assert len(capped.records) == 10
    places = [uncapped.records.index(record) for record in capped.records]
    assert places == sorted(places) and places != list(range(10))
    over_cap = capped.rejected
    assert {(row.reason, row.bad) for row in over_cap} == {("over_cap", False)}
    ids = {record.id for record in capped.records}
    assert {row.id for row in over_cap} | ids == {record.id for record in uncapped.records}
    more = [{"instruction": f"More {number}.", "output": f"{number}"} for number in range(10)]
    grown = run({"mine": {**write_lines("a.jsonl", more + GOOD), "cap": 10}})
    new = {record.id for record in grown.records} - ids
    assert len(grown.records) == 10
    assert all(record.response.isdigit() for record in grown.records if record.id in new)


def test_too_many_rejections_end_the_stage_with_counts_and_the_first_of_them() -> None:
    bad = ["{", "{", {"instruction": "a", "output": ""}]
    source = write_lines("a.jsonl", [*GOOD[:17], *bad])
    assert len(run({"mine": source}, max_rejected_share=0.15).rejected) == 3
    with pytest.raises(UserError) as error:
        run({"mine": source}, max_rejected_share=0.14)
    assert str(error.value).startswith(
        "source mine: 3 of 20 records cannot be used (2 broken_json, 1 no_response), "
        "more than ingest.max_rejected_share 0.14; first: a.jsonl line 18: broken_json: "
    )


def test_a_source_without_end_is_given_up_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.ingest.ENOUGH_REJECTED", 10)
    source = write_lines("a.jsonl", [*["{"] * 10, *GOOD * 10])
    with pytest.raises(UserError, match=r"10 of 10 records cannot be used"):
        run({"mine": source}, max_rejected_share=0.1)


def test_records_over_a_cap_are_not_bad() -> None:
    result = run({"mine": {**write_lines("a.jsonl", GOOD), "cap": 1}}, max_rejected_share=0.0)
    assert result.counts["mine"] == SourceCounts(read=40, kept=1, rejected=0, over_cap=39)


def test_a_file_of_unknown_shape_ends_the_stage_and_the_error_lists_the_known_shapes() -> None:
    write_lines("folder/a.jsonl", GOOD)
    write_lines("folder/b.jsonl", [{"id": "x", "the question": "a", "reply": "b"}])
    with pytest.raises(UserError) as error:
        run({"mine": {"path": "folder"}})
    message = str(error.value)
    assert message.startswith("folder/b.jsonl line 1: keys 'id', 'the question', 'reply'; known are ")
    assert message.endswith('ingest.files.mine: columns: {prompt: "the question", response: reply}')
    for word in ("instruction/input/output", "instruction/context/response", "conversations", "messages", "columns"):
        assert word in message
    with_columns = {"path": "folder/b.jsonl", "columns": {"prompt": "the question", "response": "reply"}}
    assert run({"mine": with_columns}).records[0].response == "b"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "q", "response": "answer"}, "a.jsonl line 1: no column 'q'; there are 'question', 'answer'"),
        (
            {"prompt": "question", "response": "answer", "input": "contxt"},
            "source mine: no record has the column 'contxt', which the source's columns name",
        ),
    ],
)
def test_the_error_for_a_missing_column_names_it(columns: dict[str, str], message: str) -> None:
    source = {**write_lines("a.jsonl", [{"question": "a", "answer": "b"}]), "columns": columns}
    with pytest.raises(UserError) as error:
        run({"mine": source})
    assert str(error.value).startswith(message)


def test_a_file_without_a_record_is_named_and_only_then() -> None:
    write_lines("folder/a.jsonl", GOOD)
    assert "files_without_records" not in run({"mine": {"path": "folder"}}).summary().to_json()
    Path("folder/b.json").write_text('{"version": 1, "rows": []}')
    assert run({"mine": {"path": "folder"}}).summary().to_json()["files_without_records"] == ["folder/b.json"]


def test_a_source_may_be_empty_but_not_all_of_them() -> None:
    Path("empty").mkdir()
    good = write_lines("a.jsonl", GOOD)
    assert run({"incoming": {"path": "empty"}, "mine": good}).counts["incoming"].read == 0
    with pytest.raises(UserError, match=r"params\.yaml: ingest: no source holds a record \(incoming\)"):
        run({"incoming": {"path": "empty"}})


def test_only_files_of_the_manifest_are_read() -> None:
    write_lines("folder/a.jsonl", GOOD[:1])
    settings = IngestSettings.model_validate({"files": {"mine": {"path": "folder"}}})
    write_manifest(Path("manifests/mine.json"), list_files("mine", settings.files["mine"]))
    write_lines("folder/b.jsonl", GOOD[1:2])
    assert len(whole(settings, Path("manifests")).records) == 1
    write_lines("folder/a.jsonl", GOOD[2:3])
    with pytest.raises(UserError, match=r"folder/a\.jsonl: has changed since its source was listed"):
        whole(settings, Path("manifests"))


def test_a_saved_dataset_is_a_source(folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(GOOD).save_to_disk(str(folder / "saved"))
    settings = IngestSettings.model_validate({"files": {}, "datasets": {"saved": {"name": "saved"}}})
    result = whole(settings, folder)
    assert [record.response for record in result.records] == [row["output"] for row in GOOD]
    assert result.records[1].meta == {"where": "saved train row 2"}


def test_examples_of_a_target_have_a_table_of_their_own_and_each_is_there_once() -> None:
    target = {**write_lines("t.jsonl", [*GOOD[:2], {"question": "And?", "answer": "Yes."}, GOOD[0]]), "target": True}
    result = run({"mine": write_lines("a.jsonl", GOOD), "aim": target})
    assert [record.source for record in result.records] == ["mine"] * 40
    assert [(record.source, record.response) for record in result.targets] == [
        ("aim", "It is 0."),
        ("aim", "It is 1."),
        ("aim", "Yes."),
    ]
    assert [(row.where, row.reason, row.bad) for row in result.rejected] == [("t.jsonl line 4", "repeated", False)]
    assert result.counts["aim"] == SourceCounts(read=4, kept=3, rejected=1, over_cap=0)


def test_a_target_without_an_example_is_one_line_with_its_key() -> None:
    empty = {**write_lines("t.jsonl", [{"instruction": "a", "output": " "}]), "target": True}
    checked = IngestSettings.model_validate({"files": {"aim": empty, "mine": write_lines("a.jsonl", GOOD)}})
    assert not has_record("aim", checked.files["aim"], checked)
    assert has_record("mine", checked.files["mine"], checked)
    with pytest.raises(UserError, match=r"^params.yaml: ingest.files.aim: t.jsonl: no record in it; a source with"):
        run({"mine": {"path": "a.jsonl"}, "aim": empty}, max_rejected_share=1.0)
