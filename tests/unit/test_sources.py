"""Every file format and record shape gives the same records; an error names the file, line or key."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.core.errors import UserError, printable
from components.core.settings.ingest import Columns, DatasetSource, FileSource
from components.data_sources import shapes
from components.data_sources.docstrings import read_docstrings
from components.data_sources.file_manifest import (
    ListedFile,
    Manifest,
    check_source,
    list_files,
    listed_files,
    write_manifest,
)
from components.data_sources.files import read_file
from components.data_sources.hub import read_dataset
from components.data_sources.reading import Reading

ROWS = [
    {"instruction": "Größe?", "input": "", "output": 'a "quoted", value'},
    {"instruction": "Two\nlines", "input": "x", "output": "ü"},
]


def as_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS), encoding="utf-8")


def as_json_in_object(path: Path) -> None:
    path.write_text(json.dumps({"version": 1, "data": ROWS}), encoding="utf-8")


def as_json_lines(path: Path) -> None:
    path.write_text("\ufeff" + "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")


def as_csv(path: Path) -> None:
    with path.open("wb") as file:
        file.write("\ufeff".encode())  # as spreadsheets do
        pa.csv.write_csv(pa.Table.from_pylist(ROWS), file)


def as_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def as_arrow(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)


WRITERS = [
    ("a.json", as_json),
    ("b.json", as_json_in_object),
    ("a.jsonl", as_json_lines),
    ("a.ndjson", as_json_lines),
    ("a.csv", as_csv),
    ("a.parquet", as_parquet),
    ("a.arrow", as_arrow),
]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_every_format_and_compression_gives_the_same_values(
    tmp_path: Path, name: str, write: Callable[[Path], None], compression: str
) -> None:
    path = tmp_path / name
    write(path)
    if compression:
        plain = path.read_bytes()
        packed = gzip.compress(plain) if compression == ".gz" else pa.compress(plain, codec="zstd", asbytes=True)
        path = path.with_name(name + compression)
        path.write_bytes(packed)
    assert [item.value for item in read_file(path)] == ROWS


def test_all_members_of_a_gzip_file_are_read(tmp_path: Path) -> None:
    line = json.dumps(ROWS[0]).encode() + b"\n"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line) + gzip.compress(line))
    assert len(list(read_file(tmp_path / "a.jsonl.gz"))) == 2


BROKEN = [
    ("a.json", b'[{"instruction": "a",}]', "a.json line 1 column 22: not valid JSON"),
    ("a.json", b'{"output": 1}\n{"output": 2}', "a file with one object per line must end in .jsonl"),
    ("a.json", b'{"a": [], "b": []}', "exactly one list"),
    ("a.json", b'"text"', "holds a single str"),
    ("a.json", b'[\n"\xe9"]', "a.json line 2: not UTF-8 text"),
    ("a.json", b'[{"output": ' + b"1" * 5000 + b"}]", "a.json: not usable JSON"),
    ("a.json", b"[" * 100_000, "a.json: not usable JSON"),
    ("a.csv", b"instruction,output\n\xe9,b\n", "a.csv line 2: not UTF-8 text"),
    ("a.csv", b'instruction,output\na,"b"c\n', "a.csv line 2: not valid CSV"),
    ("a.csv", b"instruction,output,output\na,b,c\n", "column 'output' occurs twice"),
    ("a.parquet", b"PAR1 and nothing else PAR1", "a.parquet: cannot be read"),
    ("a.arrow", b"no stream at all", "a.arrow: cannot be read"),
    ("a.jsonl.gz", gzip.compress(b'{"instruction": "a", "output": "b"}\n' * 999)[:-12], "a.jsonl.gz: cannot be read"),
    ("a.jsonl.gz", b'{"instruction": "a", "output": "b"}\n', "a.jsonl.gz: cannot be read"),
    ("a.jsonl.zst", b"no zstd", "a.jsonl.zst: cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_the_error_for_an_unreadable_file_names_file_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_file(tmp_path / name))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_broken_line_is_an_item_with_its_place_and_the_other_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = b'{"instruction": "a", "output": "b"}'
    path.write_bytes(b"\n".join([good, b'{"instruction": ', b'"\xe9"', b"1" * 5000, b"[" * 100_000, good]))
    items = list(read_file(path))
    assert [item.reason for item in items] == [None, "broken_json", "not_utf8", "broken_json", "broken_json", None]
    assert [item.where for item in items] == [f"{path} line {number}" for number in range(1, 7)]


def test_a_csv_row_with_a_wrong_number_of_fields_is_an_item_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("instruction,output\na,b\nc\nd,e,f\n")
    assert [item.reason for item in read_file(tmp_path / "a.csv")] == [None, "broken_csv", "broken_csv"]


def texts(value: dict[str, Any]) -> list[tuple[str, str]]:
    convert = shapes.recognize(value)
    assert convert is not None
    return [(message.role, message.content) for message in shapes.finish(convert(value))[0]]


ONE_TURN = [("user", "Add.\nInput: 1 2"), ("assistant", "3")]
QUESTION = {"role": "user", "content": "a"}
EMPTY = {"role": "assistant", "content": ""}
SHORT = [("user", "Hi"), ("assistant", "Hello")]
TWO_TURNS = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "1+1?"), ("assistant", "2")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, ONE_TURN),
        ({"instruction": "Add.", "input": "", "output": "3"}, [("user", "Add."), ONE_TURN[1]]),
        ({"instruction": "Add.", "input": None, "output": "3", "text": "x"}, [("user", "Add."), ONE_TURN[1]]),
        ({"instruction": "Add.", "output": "3"}, [("user", "Add."), ONE_TURN[1]]),
        ({"instruction": "Add.", "context": "1 2", "response": "3", "category": "math"}, ONE_TURN),
        (
            {
                "conversations": [
                    {"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text}
                    for role, text in TWO_TURNS
                ]
            },
            TWO_TURNS,
        ),
        ({"messages": [{"role": role, "content": text} for role, text in TWO_TURNS]}, TWO_TURNS),
        (
            {
                "messages": [
                    {"role": role, "content": [{"type": "text", "text": text[:1]}, {"type": "text", "text": text[1:]}]}
                    for role, text in TWO_TURNS
                ]
            },
            TWO_TURNS,
        ),
        ({"prompt": "Hi", "completion": "Hello"}, SHORT),
        (
            {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]},
            SHORT,
        ),
        ({"question": "Hi", "answer": "Hello"}, SHORT),
        ({"system_prompt": "Be kind.", "question": "Hi", "response": "Hello"}, [("system", "Be kind."), *SHORT]),
        ({"conversation": [{"role": "user", "value": "Hi"}, {"role": "gpt", "value": "Hello"}]}, SHORT),
        ({"items": [{"speaker": "human", "text": "Hi"}, {"speaker": "gpt", "text": "Hello"}]}, SHORT),
        (
            {"instruction": "1+1?", "output": "2", "system": "Be kind.", "history": [["Hi", "Hello"]]},
            TWO_TURNS,
        ),
        ({"instruction": "Hi", "output": "Hello", "system": "", "history": None}, SHORT),
        # the last response that is to be trained ends the record
        (
            {
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Hello", "weight": 1},
                    QUESTION,
                    {"role": "assistant", "content": "b", "weight": 0},
                ]
            },
            SHORT,
        ),
    ],
)
def test_every_known_shape_is_converted_to_its_conversation(
    value: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert texts(value) == expected


def test_user_messages_after_the_last_response_are_cut_off() -> None:
    turns = [{"role": role, "content": text} for role, text in [*TWO_TURNS, ("user", "Thanks"), ("user", "Bye")]]
    convert = shapes.recognize({"messages": turns})
    assert convert is not None
    kept, cut = shapes.finish(convert({"messages": turns}))
    assert [(message.role, message.content) for message in kept] == TWO_TURNS
    assert cut == 2


def test_columns_can_have_any_name() -> None:
    row = {"q": "Add.", "numbers": "1 2", "a": "3", "s": "Be kind."}
    messages = shapes.from_columns(row, Columns(prompt="q", response="a", input="numbers", system="s"))
    assert [(message.role, message.content) for message in messages] == [("system", "Be kind."), *ONE_TURN]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"instruction": "a", "output": ""}, "no_response"),
        ({"instruction": "a", "output": " \n"}, "no_response"),
        ({"instruction": "a", "output": None}, "no_response"),
        ({"instruction": " ", "input": "", "output": "b"}, "no_prompt"),
        ({"instruction": "a", "output": 7}, "not_text"),
        ({"instruction": ["a"], "output": "b"}, "not_text"),
        ({"instruction": "a", "output": "\ud800"}, "not_text"),
        ({"messages": []}, "no_response"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no_response"),
        ({"messages": [{"role": "assistant", "content": "b"}]}, "no_prompt"),
        ({"messages": "a"}, "unknown_shape"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "unknown_shape"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not_text"),
        ({"conversations": [{"from": None, "value": "a"}]}, "unknown_shape"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "b", "weight": 0}]}, "not_to_be_trained"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "b", "train": False}]}, "not_to_be_trained"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "b", "weight": 0.5}]}, "not_to_be_trained"),
        ({"instruction": "a", "output": "b", "weight": 0}, "not_to_be_trained"),
        ({"prompt": "a", "completion": "b", "label": False}, "not_to_be_trained"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "b", "reasoning_content": "c"}]}, "reasoning"),
        ({"messages": [QUESTION, {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}]}, "tool_calls"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "b"}], "tools": [{"name": "f"}]}, "tool_calls"),
        ({"conversations": [{"from": "human", "value": "a"}], "tools": '[{"name": "f"}]'}, "tool_calls"),
        ({"messages": [QUESTION, EMPTY, QUESTION, {"role": "assistant", "content": "b"}]}, "no_response"),
        ({"instruction": "a", "output": "b", "history": "c"}, "unknown_shape"),
        ({"messages": [QUESTION, {"role": "assistant", "content": [{"type": "text", "text": None}]}]}, "no_response"),
        ({"messages": [QUESTION, {"role": "assistant", "content": [{"type": "text", "text": 7}]}]}, "not_text"),
    ],
)
def test_a_value_that_makes_no_record_has_a_reason(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(shapes.BadRecordError) as error:
        texts(value)
    assert error.value.reason == reason


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_a_record_whose_list_of_tools_is_empty_is_a_record(tools: Any) -> None:
    value = {"messages": [QUESTION, {"role": "assistant", "content": "b"}], "tools": tools}
    assert texts(value)[-1] == ("assistant", "b")


def test_an_unknown_shape_is_not_guessed() -> None:
    assert shapes.recognize({"ask": "a", "reply": "b"}) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"instruction": "a", "output": "b", "history": []}, [{"instruction": "a", "output": "b", "history": []}]),
        ({"conversations": [QUESTION], "tags": ["x"]}, [{"conversations": [QUESTION], "tags": ["x"]}]),
        ({"names": ["a"], "rows": [QUESTION]}, [QUESTION]),  # several lists, only one of objects
        ({"version": 1, "rows": []}, []),
        ({"ask": "a", "reply": "b"}, [{"ask": "a", "reply": "b"}]),  # ingest names the columns to choose from
    ],
)
def test_an_object_in_a_file_is_a_record_or_holds_the_only_list_of_records(
    tmp_path: Path, value: dict[str, Any], expected: list[Any]
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert [item.value for item in read_file(tmp_path / "a.json")] == expected


def test_a_tree_of_messages_is_refused_by_name() -> None:
    assert "a tree (OASST)" in shapes.describe_unknown({"message_id": "1", "parent_id": None, "text": "a", "role": "x"})
    assert "a tree (OASST)" in shapes.describe_unknown({"message_tree_id": "1", "prompt": {"replies": []}})


def test_values_of_a_json_list_are_read_one_by_one_whatever_the_window(tmp_path: Path) -> None:
    rows = [{"instruction": "ä" * (3**power), "output": "\\\n\u2028"} for power in range(12)] + [-1.5e300, None, [[]]]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    assert [item.value for item in read_file(tmp_path / "a.json")] == rows
    late = json.dumps(rows)[:-1] + ",\n\n {1}]"
    (tmp_path / "a.json").write_text(late)
    with pytest.raises(UserError, match=r"a\.json line 3 column 3: not valid JSON: Expecting property name"):
        list(read_file(tmp_path / "a.json"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz", "a.parquet", "a.parquet.gz", "a.arrow"])
def test_a_file_over_the_limit_after_decompression_is_refused(tmp_path: Path, name: str) -> None:
    rows = [{"instruction": "a" * 9000, "output": "b"}] * 1000
    plain = tmp_path / name.removesuffix(".gz")
    if ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(rows), plain, compression="none", use_dictionary=False)
    elif ".arrow" in name:
        with pa.ipc.new_stream(str(plain), pa.Table.from_pylist(rows).schema) as stream:
            stream.write_table(pa.Table.from_pylist(rows))
    elif ".csv" in name:
        pa.csv.write_csv(pa.Table.from_pylist(rows), plain)
    else:
        lines = [json.dumps(row) for row in rows]
        plain.write_text("[" + ",".join(lines) + "]" if ".json.gz" in name else "\n".join(lines))
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(UserError, match=r"more than 8,000,000 bytes after decompression .*ingest\.max_file_bytes"):
        list(read_file(path, Reading(max_file_bytes=8_000_000)))


def test_a_line_a_row_and_a_value_over_the_limit_are_refused_or_listed(tmp_path: Path) -> None:
    reading, long = Reading(max_line_bytes=1000), "a" * 1000
    (tmp_path / "a.jsonl").write_text(f'{{"output": "{long}"}}\n{{}}\n')
    assert [item.reason for item in read_file(tmp_path / "a.jsonl", reading)] == ["line_too_long", None]
    (tmp_path / "a.csv").write_text(f'instruction,output\nb,"{long}"\n')
    (tmp_path / "b.csv").write_text("instruction,output\n" + '"a\n",' * 400)
    (tmp_path / "a.json").write_text(f'[1,\n{{"output": "{long}"}}]')
    (tmp_path / "b.json").write_text(f'{{"output": "{long}"}}')
    for name in ("a.csv", "b.csv", "a.json", "b.json"):
        with pytest.raises(UserError, match=rf"{name}.* longer than 1,000 bytes .*ingest\.max_line_bytes"):
            list(read_file(tmp_path / name, reading))


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
def test_columns_that_are_not_read_are_not_converted_and_broken_values_are_named(tmp_path: Path, name: str) -> None:
    bad = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"b\xff"))
    out_of_range = pa.array([2**62, 1], pa.timestamp("s"))
    table = pa.table({"instruction": ["a", "a"], "output": bad, "when": out_of_range})
    if name == "a.parquet":
        pq.write_table(
            table.set_column(2, "when", out_of_range.cast(pa.int64()).cast(pa.timestamp("us"))), tmp_path / name
        )
    else:
        with pa.ipc.new_stream(str(tmp_path / name), table.schema) as stream:
            stream.write_table(table)
    good, broken = read_file(tmp_path / name)
    assert good.value == {"instruction": "a", "output": "b", "when": None}
    assert (broken.where, broken.reason) == (f"{tmp_path / name} row 2", "not_utf8")
    assert broken.detail.startswith("column 'output'")


def test_a_corrupted_arrow_file_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path, table = tmp_path / "a.arrow", pa.table({"instruction": ["a"] * 3, "output": ["bcdef", "ghijk", "lmnop"]})
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)
    offsets, wild = struct.pack("4i", 0, 5, 10, 15), struct.pack("4i", 0, 5, 2**31 - 16, 15)
    assert path.read_bytes().count(offsets) == 1
    path.write_bytes(path.read_bytes().replace(offsets, wild))
    with pytest.raises(UserError, match=r"a\.arrow: column 'output': cannot be read"):
        list(read_file(tmp_path / "a.arrow"))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_few_bytes_that_stand_for_gigabytes_are_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    text = "y" * (1 << 20)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array([text]))
    table = pa.table({"instruction": ["x"] * 3000, "output": repeated})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.ipc.new_stream(str(tmp_path / name), table.schema) as stream:
            stream.write_table(table)
    assert (tmp_path / name).stat().st_size < 2 << 20
    # in a process of its own, as ingest is: memory that was freed before would be used again unseen
    code = (
        "import pathlib, resource; from components.data_sources import files\n"
        "before = resource.getrlimit(resource.RLIMIT_DATA)\n"
        f"try: list(files.read_file(pathlib.Path({name!r})))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "assert resource.getrlimit(resource.RLIMIT_DATA) == before"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"UserError {name}: a batch of rows takes more than 640 MiB in memory"), done.stdout


def test_a_corrupted_file_of_a_saved_dataset_is_an_error_and_no_crash(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = [{"instruction": "a", "output": text} for text in ("bcdef", "ghijk", "lmnop")]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    (path,) = (tmp_path / "saved").glob("data-*.arrow")
    offsets, wild = struct.pack("4i", 0, 5, 10, 15), struct.pack("4i", 0, 5, 2**31 - 16, 15)
    path.write_bytes(path.read_bytes().replace(offsets, wild))
    with pytest.raises(UserError, match="column 'output': cannot be read"):
        list(read_dataset("d", DatasetSource(name=str(tmp_path / "saved"))))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [  # what fuzzing found, and what it could not find
        ("dataset_info.json", b"1", "not a folder that save_to_disk wrote"),
        ("dataset_info.json", b"{", "not a folder that save_to_disk wrote"),
        ("state.json", b"1", "state.json: not a list of data files"),
        ("state.json", b'{"_fingerprint": "a"}', "state.json: not a list of data files"),
        ("state.json", b"[" * 100_000, "state.json: not a list of data files"),
        ("state.json", b'{"_data_files": [], "_format_kwargs": {}}', "not a folder that save_to_disk wrote"),
        ("state.json", b'{"_data_files": [{"filename": 3}]}', "'3' is not followed"),
        ("state.json", b'{"_data_files": [{"filename": "../../other.arrow"}]}', "'../../other.arrow' is not followed"),
        ("data-00000-of-00001.arrow", b"\xff\xff\xff\xff\xf9\xff\xff\xff", "not a folder that save_to_disk wrote"),
    ],
)
def test_a_broken_file_of_a_saved_dataset_is_one_line(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"ingest\.datasets\.d\.name: .*{re.escape(message)}") as raised:
        list(read_dataset("d", DatasetSource(name=str(tmp_path / "saved"))))
    assert len(raised.value.mistakes) == 1


NAMES = [*sorted(shapes.KEYS), "role", "content", "from", "value", "type", "text", "tool_calls", "reasoning_content"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "assistant", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6))
def test_whatever_a_value_holds_it_is_a_conversation_or_has_a_reason(value: dict[str, Any]) -> None:
    convert = shapes.recognize(value)
    if convert is None:
        assert "\n" not in printable(shapes.describe_unknown(value))
        shapes.propose_columns(value)
        return
    with contextlib.suppress(shapes.BadRecordError):
        kept, _ = shapes.finish(convert(value))
        assert kept[-1].role == "assistant"
        assert all(message.content.strip() for message in kept if message.role == "assistant")


MODULE = """
raise SystemExit("never imported")
def public(a, *, b: int = 1) -> str:
    '''Say it.

        Indented.
    Not.
    '''
def _private(): "no"
def without(): pass
class Thing(Base, metaclass=M):
    "A thing."
    def method(self): "Do it."
    async def wait(self): "Wait."
    def __len__(self): "no"
if True:
    def on_some_platforms(): "Sometimes."
"""


def test_docstrings_of_public_definitions_come_in_the_order_of_the_modules(tmp_path: Path) -> None:
    for name in ("b.py", "a/__init__.py", "a/z.py", "_c.py", "a/_d.py", "test/e.py", "site-packages/f.py", "x-y/g.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(MODULE)
    items = list(read_docstrings(tmp_path))
    names = ["public", "Thing", "Thing.method", "Thing.wait", "on_some_platforms"]
    assert [item.where.partition(" ")[0] for item in items] == [
        f"{module}.{x}" for module in ["a", "a.z", "b"] for x in names
    ]
    assert [item.value["input"] for item in items[:4]] == [
        "def a.public(a, *, b: int=1) -> str:",
        "class a.Thing(Base):",
        "def a.Thing.method(self):",
        "async def a.Thing.wait(self):",
    ]
    assert items[0].value["output"] == "Say it.\n\n    Indented.\nNot."
    assert items[0].where == "a.public (a/__init__.py line 3)"


def test_the_manifest_of_a_folder_has_readable_files_with_digests_and_the_ignored_files(tmp_path: Path) -> None:
    for name in ("b.json", "deep/a.jsonl.gz", "notes.txt", ".hidden.json", ".git/x.json", ".gitkeep"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"[]")
    manifest = list_files("mine", FileSource(path=str(tmp_path)))
    digest = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
    assert manifest == Manifest(
        files=[ListedFile(f"{tmp_path}/{name}", 2, digest) for name in ("b.json", "deep/a.jsonl.gz")],
        ignored=[f"{tmp_path}/notes.txt"],
    )
    assert len(list_files("mine", FileSource(path=str(tmp_path), pattern="*.json")).files) == 1


def special(path: Path, kind: str) -> None:
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a link to nothing":
        path.symlink_to("gone")
    else:
        os.close(os.open(os.fsencode(path) + b"\xff", os.O_CREAT))


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device", "a link to nothing", "not UTF-8"])
def test_what_nobody_can_read_in_a_source_is_named_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")  # the path of a socket has at most 107 bytes
    special(Path("x.json"), kind)
    monkeypatch.chdir(tmp_path)
    (mistake,) = check_source("mine", FileSource(path="in"), [])
    assert mistake.startswith("params.yaml: ingest.files.mine.path: in/x.json") and kind in mistake
    with pytest.raises(UserError, match=kind):
        list_files("mine", FileSource(path="in"))
    if kind != "not UTF-8":
        (mistake,) = check_source("mine", FileSource(path="in/x.json"), [])
        assert mistake.startswith("params.yaml: ingest.files.mine.path: in/x.json: ") and kind in mistake


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", "holds the project itself"),
        ("..", "holds the project itself"),
        ("data", "the pipeline writes data/raw.parquet"),
        ("data/raw.parquet", "the pipeline writes data/raw.parquet"),
        ("models/1", "the pipeline writes models"),
        ("a" * 5000, "File name too long"),
        ("a/" * 2500, "File name too long"),
        ("a\0b", "null"),
        ("data/incoming", None),
    ],
)
def test_a_source_may_not_hold_what_the_pipeline_writes_and_has_a_path_of_bearable_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("data/incoming", "models/1"):
        Path(folder).mkdir(parents=True)
    Path("data/raw.parquet").touch()
    mistakes = check_source("mine", FileSource(path=path), ["data/raw.parquet", "models"])
    assert len(mistakes) == (message is not None)
    assert all(message in mistake and len(mistake) < 300 for mistake in mistakes if message)


def test_links_out_of_a_source_are_followed_only_when_it_says_so_and_are_named_otherwise(tmp_path: Path) -> None:
    for name in ("in/a.json", "in/deep/b.json", "out/c.json", "out/deep/d.json", "out/e.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")
    links = {"in/file.json": "../out/e.json", "in/folder": "../out", "in/round": ".", "in/inner.json": "deep/b.json"}
    for name, target in {**links, "out/back": "../in", "out/deep/up": ".."}.items():
        (tmp_path / name).symlink_to(target)

    def listed(*, follow: bool) -> tuple[list[str], list[str]]:
        manifest = list_files("mine", FileSource(path=str(tmp_path / "in"), pattern="**/*.json", follow_links=follow))
        paths = [file.path for file in manifest.files]
        inside = [[path.removeprefix(f"{tmp_path}/in/") for path in list_] for list_ in (paths, manifest.ignored)]
        return inside[0], inside[1]

    own = ["a.json", "deep/b.json"]
    assert listed(follow=False) == ([*own, "inner.json"], ["file.json", "folder", "round"])
    outside = ["file.json", "folder/c.json", "folder/deep/d.json", "folder/e.json"]
    assert listed(follow=True) == ([*own, *outside, "inner.json"], ["folder/back", "folder/deep/up", "round"])


def test_a_manifest_is_written_as_json_that_a_person_can_read(tmp_path: Path) -> None:
    write_manifest(tmp_path / "mine.json", Manifest([ListedFile("in/a.json", 2, "0" * 64)], ["in/notes.txt"]))
    assert json.loads((tmp_path / "mine.json").read_text()) == {
        "files": [{"path": "in/a.json", "bytes": 2, "sha256": "0" * 64}],
        "ignored": ["in/notes.txt"],
    }


def test_an_empty_folder_is_a_source_without_files(tmp_path: Path) -> None:
    assert list_files("mine", FileSource(path=str(tmp_path))) == Manifest(files=[], ignored=[])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (FileSource(path="not/there"), "params.yaml: ingest.files.mine.path: not/there: no such file or folder"),
        (
            FileSource(path="data.txt"),
            "params.yaml: ingest.files.mine.path: data.txt: unknown extension; expected .json",
        ),
        (FileSource(path=".", pattern="/etc/*"), "params.yaml: ingest.files.mine.pattern: '/etc/*'"),
        (FileSource(path=".", pattern="../*"), "params.yaml: ingest.files.mine.pattern: '../*'"),
        (FileSource(path=".", pattern=""), "params.yaml: ingest.files.mine.pattern: ''"),
    ],
)
def test_the_error_for_a_source_without_readable_path_names_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: FileSource, message: str
) -> None:
    (tmp_path / "data.txt").write_text("x")
    (tmp_path.parent / "above.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        list_files("mine", source)
    assert str(error.value).startswith(message)


def test_a_file_that_has_changed_since_it_was_listed_is_not_read(tmp_path: Path) -> None:
    data, manifest = tmp_path / "a.json", tmp_path / "manifest.json"
    data.write_text("[]")
    write_manifest(manifest, list_files("mine", FileSource(path=str(data))))
    assert listed_files(manifest) == [data]
    data.write_text("{}")  # the same size
    with pytest.raises(UserError, match=r"a\.json: has changed since its source was listed"):
        listed_files(manifest)
    data.unlink()
    with pytest.raises(UserError, match=r"a\.json: has changed since its source was listed"):
        listed_files(manifest)


def test_a_saved_dataset_is_read_and_its_split_is_checked(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    saved.save_to_disk(str(tmp_path / "saved"))
    items = list(read_dataset("d", DatasetSource(name=str(tmp_path / "saved"))))
    assert [item.value for item in items] == ROWS
    with pytest.raises(UserError, match=r"ingest\.datasets\.d\.split: no 'test' in .*; there are train"):
        list(read_dataset("d", DatasetSource(name=str(tmp_path / "saved"), split="test")))
    arrow = list_files("d", FileSource(path=str(tmp_path / "saved"), pattern="**/*.arrow")).files
    # the same folder as a source of files, so that DVC notices changes
    assert [item.value for file in arrow for item in read_file(Path(file.path))] == ROWS


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DatasetSource(name="owner/name"), "params.yaml: ingest.datasets.d.revision: missing"),
        (DatasetSource(name="no such thing/"), "params.yaml: ingest.datasets.d.name: no such thing/: neither"),
        (DatasetSource(name="."), "params.yaml: ingest.datasets.d.name: .: not a folder that save_to_disk wrote"),
    ],
)
def test_the_error_for_an_impossible_dataset_names_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: DatasetSource, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        list(read_dataset("d", source))
    assert str(error.value).startswith(message)
