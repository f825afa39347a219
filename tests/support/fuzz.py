"""Feeds mutated files and settings to every reader, guided by the code that each one reaches; only UserError may come.

    uv pip install --no-deps atheris==3.0.0     not in the lock: it needs clang's runtime, and nobody else needs it
    nice -n 10 python -m tests.support.fuzz FOLDER [SECONDS [TARGET ...]]

Each target is a process of its own with a memory limit, so that a crash is seen as one: SECONDS (600) are shared
equally. FOLDER gets the corpora, by target, and under `found` each input that ended in anything but a UserError, or
took longer than SLOW. The exit code is 1 when there is one, or when a target did not run at all.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY = 3072  # MiB of a target's process
SLOW = 10.0  # seconds of one input
LONGEST = 4096  # bytes of an input, but of those whose seeds are longer
PROJECT = Path(__file__).parents[2]
INSTRUMENTED = ["components", "flows", "ruamel.yaml", "datasets.arrow_dataset", "datasets.info"]

Target = Callable[[bytes], None]


@dataclass(frozen=True)
class Fuzzed:
    """What is done with an input, what inputs are made from, and words that they are made of."""

    run: Target
    seeds: list[bytes]
    words: Iterable[str] = ()


# --- the sources of records

CONVERSATIONS: list[dict[str, Any]] = [
    {"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["u", "v"]]},
    {"question": "a", "answer": "b", "context": "c", "label": True},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}], "id": 1},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "é"}]},
]
ROWS = [{"instruction": f"a{number}", "output": "ä\n" * number, "when": number} for number in range(5)]


def _ingest(file: Path, **source: Any) -> None:
    """Everything that `ingest` does with a file, its outputs included."""
    from components.core.settings.ingest import FileSource, IngestSettings
    from components.data.records import Record, read_records, write_records
    from components.data.tables import REJECTED, write_rows
    from components.data_sources.file_manifest import list_files, write_manifest
    from components.ingest import ingest

    files = {"x": FileSource(path=str(file), **source)}
    settings = IngestSettings(files=files, max_rejected_share=1.0, max_line_bytes=2**16, max_file_bytes=2**24)
    write_manifest(Path("sources/x.json"), list_files("x", files["x"]))
    records: list[Record] = []
    result = ingest(settings, Path("sources"), records.append)
    write_records(Path("raw.parquet"), records)
    write_rows(Path("rejected.parquet"), result.rejected, REJECTED)
    assert read_records(Path("raw.parquet")) == records


def _data_file(name: str, *seeds: bytes) -> Fuzzed:
    from components.data_sources.shapes import KEYS

    def run(content: bytes) -> None:
        Path(name).write_bytes(content)
        _ingest(Path(name))

    return Fuzzed(run, list(seeds), (f'"{key}"' for key in sorted(KEYS)))


def _json() -> Fuzzed:
    return _data_file("x.json", json.dumps(CONVERSATIONS).encode(), json.dumps({"data": CONVERSATIONS}).encode())


def _json_lines() -> Fuzzed:
    return _data_file("x.jsonl", "\n".join(map(json.dumps, CONVERSATIONS)).encode())


def _gzip() -> Fuzzed:
    return _data_file("x.jsonl.gz", gzip.compress(json.dumps(CONVERSATIONS[0]).encode()))


def _zstd() -> Fuzzed:
    import pyarrow as pa

    return _data_file("x.csv.zst", pa.compress(b"prompt,response\na,b\n", codec="zstd", asbytes=True))


def _csv() -> Fuzzed:
    return _data_file("x.csv", b'prompt,response,system\na,"b\nc",d\n', b"question,answer\r\n1,2\r\n")


def _parquet() -> Fuzzed:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def written(table: pa.Table, **options: Any) -> bytes:
        sink = io.BytesIO()
        pq.write_table(table, sink, **options)
        return sink.getvalue()

    tables = [pa.Table.from_pylist(ROWS), pa.Table.from_pylist(CONVERSATIONS[3:4])]
    return _data_file("x.parquet", *(written(table, compression=kind) for table in tables for kind in ("NONE", "zstd")))


def _arrow() -> Fuzzed:
    import pyarrow as pa

    def written(table: pa.Table) -> bytes:
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()

    return _data_file("x.arrow", *(written(pa.Table.from_pylist(rows)) for rows in (ROWS, CONVERSATIONS[3:4])))


def _dataset() -> Fuzzed:
    """A folder of save_to_disk: the first byte of an input says which of its files the rest is."""
    import datasets

    from components.core.settings.ingest import DatasetSource, IngestSettings
    from components.ingest import ingest

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk("whole")
    names = sorted(path.name for path in Path("whole").iterdir())

    def run(content: bytes) -> None:
        shutil.rmtree("saved", ignore_errors=True)
        shutil.copytree("whole", "saved")
        (Path("saved") / names[content[0] % len(names) if content else 0]).write_bytes(content[1:])
        source = DatasetSource(name="saved")
        settings = IngestSettings(files={}, datasets={"x": source}, max_rejected_share=1.0)
        ingest(settings, Path("sources"), lambda record: None)

    return Fuzzed(run, [bytes([number]) + (Path("whole") / name).read_bytes() for number, name in enumerate(names)])


# --- settings

VALUES = (
    "null", "true", "0", "-1", "1", "2", "1.5", "-0.0", ".inf", "-.inf", ".nan", "1e400", "1e-400", "'1'", "''", "a/b",
    "[]", "{}", "[1, 2]", "{a: b}", "[[[]]]", "2020-01-01", "2020-02-31", "!!binary aGk=", "!!set {a}", "!x 3",
    "'\\udc80'", '"\\0"', '"\\ud800"', "&a [*a]", "<<: 3", "1:30", "0x1f", "0o17", "1_000", "~", "? [a]", "*a", "%",
    "@", "9" * 5000, "[" * 300, "a" * 70_000, "latest", "champion", "v1", "base", "2", "'2'", "\u2028", "/dev/stdin",
    "..",
)  # fmt: skip


def _params() -> Fuzzed:
    """The text of params.yaml."""
    from components.core.params import load_settings

    def run(content: bytes) -> None:
        Path("params.yaml").write_bytes(content)
        load_settings()

    blocks = [block.encode() for block in (PROJECT / "params.yaml").read_text().split("\n\n")]
    return Fuzzed(run, [(PROJECT / "params.yaml").read_bytes(), *blocks], VALUES)


def _settings() -> Fuzzed:
    """What is checked before a run: params.yaml with another value of one to three of its keys, or of new ones."""
    import atheris

    from components.core.files import flatten
    from components.core.params import check_settings, parse_yaml
    from components.core.settings.pipeline import Settings
    from flows.workspace import check_workspace

    for name in (".dvc", ".git", "data/incoming"):
        Path(name).mkdir(parents=True, exist_ok=True)
    shutil.copytree(PROJECT / "conf", "conf", dirs_exist_ok=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(PROJECT / name, name)
    base = parse_yaml((PROJECT / "params.yaml").read_text(), "params.yaml")
    keys = sorted({*flatten(base), *base, *_known_keys(Settings)})

    def run(content: bytes) -> None:
        data = atheris.FuzzedDataProvider(content)
        params = json.loads(json.dumps(base))
        for _ in range(data.ConsumeIntInRange(1, 3)):
            *blocks, last = data.PickValueInList(keys).split(".")
            text = data.PickValueInList(list(VALUES)) if data.ConsumeBool() else data.ConsumeUnicode(12)
            block = params
            for part in blocks:
                block = block[part] if isinstance(block.get(part), dict) else block.setdefault(part, {}) or {}
                if not isinstance(block, dict):
                    return
            block[last if data.ConsumeProbability() > 0.1 else data.ConsumeUnicode(3)] = parse_yaml(text, "params.yaml")
        check_workspace(check_settings(params))

    return Fuzzed(run, [random.Random(number).randbytes(32) for number in range(8)])


def _known_keys(model: Any, before: str = "") -> Iterable[str]:
    for name, info in model.model_fields.items():
        key = f"{before}{info.alias or name}"
        yield key
        if hasattr(info.annotation, "model_fields"):
            yield from _known_keys(info.annotation, f"{key}.")


SMALLEST_PARAMS = """base_model: {kind: folder, path: m}
ingest: {files: {incoming: {path: data}}}
dedupe: {}
score: {}
select: {ratio: 0.2}
finetune: {}
evaluate: {}
register: {}
gate: {}
iterations: {"1": {parent: base}, "2": {parent: "1"}}
"""  # a file of usual length is read eight times slower, by a reader that is instrumented


def _assignments() -> Fuzzed:
    """`--set` with the lines of an input."""
    from flows.parameters import set_parameters

    def run(content: bytes) -> None:
        Path("params.yaml").write_text(SMALLEST_PARAMS)
        set_parameters(content.decode(errors="surrogateescape").split("\n"), lambda _: None)

    seeds = [b"select.ratio=0.1", b"iterations.2.parent='1'\niterations.4={parent: '3'}", b"ingest.files.new={path: a}"]
    return Fuzzed(run, seeds, ("=", ".", *VALUES, "ingest.files", "iterations", "base_model"))


def _lock() -> Fuzzed:
    """dvc.lock."""
    from components.provenance.lockfile import parse_lock

    seed = """schema: '2.0'
stages:
  score@1:
    cmd: python -m x
    deps:
    - {path: a, hash: md5, md5: 0123, size: 3}
    params: {params.yaml: {score.dtype: float32, select: {ratio: 0.2}}}
    outs:
    - {path: b, hash: md5, md5: 45.dir, size: 3, nfiles: 2}
"""

    def run(content: bytes) -> None:
        parse_lock(content.decode(errors="replace"))

    return Fuzzed(run, [seed.encode()], VALUES)


# --- models

MODEL_FILES = ("config.json", "model.safetensors.index.json", "generation_config.json", "tokenizer_config.json")


def _model(folder: Path) -> tuple[Path, Callable[[], Path]]:
    """A small model, and a function that makes a copy of it to damage."""
    from tests.support.small_model import make_small_model

    whole = make_small_model(folder / "whole", hidden_size=16, layers=1)

    def copy() -> Path:
        shutil.rmtree("model", ignore_errors=True)
        return Path(shutil.copytree(whole, "model"))

    return whole, copy


def _model_files() -> Fuzzed:
    """The checks before a model is built. The first byte of an input says which file the rest is."""
    from components.model.weights import check_folder

    whole, copy = _model(Path())
    tensors = json.loads((whole / "model.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    names = [*MODEL_FILES, "model.safetensors"]

    def run(content: bytes) -> None:
        folder = copy()
        (folder / names[content[0] % len(names) if content else 0]).write_bytes(content[1:])
        check_folder(folder, name="given")

    contents = [(whole / name).read_bytes()[:LONGEST] for name in names]
    return Fuzzed(run, [bytes([number]) + content for number, content in enumerate(contents)])


def _model_values() -> Fuzzed:
    """A whole load. A key of a model's configuration or of its tokenizer's has another value."""
    import atheris

    from components.core.params import parse_yaml
    from components.model_sources.folder import load_folder

    whole, copy = _model(Path())
    files = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
    texts = {name: json.loads((whole / name).read_text()) for name in files}

    def run(content: bytes) -> None:
        data, folder = atheris.FuzzedDataProvider(content), copy()
        name = data.PickValueInList(files)
        value = json.loads(json.dumps(texts[name]))
        for _ in range(data.ConsumeIntInRange(1, 2)):
            place = value
            while isinstance(place, dict) and place:
                key = data.PickValueInList(sorted(place))
                if isinstance(place[key], dict) and data.ConsumeBool():
                    place = place[key]
                    continue
                place[key] = parse_yaml(data.PickValueInList(list(VALUES)), "value")
                break
        try:
            text = json.dumps(value, default=str)
        except (ValueError, TypeError, RecursionError):  # YAML knows values that JSON does not
            return
        (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        load_folder(folder, name="given")

    return Fuzzed(run, [random.Random(number).randbytes(16) for number in range(8)])


def _template() -> Fuzzed:
    """A chat template."""
    from components.data.records import Message
    from components.model.chat import encode_prompts
    from components.model.load import load_tokenizer
    from components.scoring.ifd import encode_pairs
    from tests.support.records import ask
    from tests.support.small_model import TEMPLATE

    tokenizer = load_tokenizer(_model(Path())[0])
    records = [ask("a", " b "), ask("a", "b", Message("system", "s"), Message("user", "u"), Message("assistant", "v"))]

    def run(content: bytes) -> None:
        tokenizer.chat_template = content.decode(errors="replace")
        encode_pairs(records, tokenizer, system="s", template="chat", max_length=32)
        encode_prompts(records, tokenizer, system="s")

    words = ("{{", "}}", "{%", "%}", "messages", "message['content']", "raise_exception('a')", "loop.first", "endfor")
    return Fuzzed(run, [TEMPLATE.encode(), b"{{ bos_token }}{{ messages[0].content }}"], words)


TARGETS: dict[str, Callable[[], Fuzzed]] = {
    "json": _json, "jsonl": _json_lines, "gzip": _gzip, "zstd": _zstd, "csv": _csv, "parquet": _parquet,
    "arrow": _arrow, "dataset": _dataset, "params": _params, "settings": _settings, "assignments": _assignments,
    "lock": _lock, "model-files": _model_files, "model-values": _model_values, "template": _template,
}  # fmt: skip


# --- the processes


def fuzz(name: str, folder: Path, seconds: int) -> None:
    """Run one target in this process until the time is over; libFuzzer ends the process."""
    import atheris

    corpus, found, place = folder / "corpora" / name, folder / "found" / name, folder / "places" / name
    for path in (corpus, found, place):
        path.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        from components.core.errors import UserError

        fuzzed = TARGETS[name]()
        for seed in fuzzed.seeds:  # imports what is imported late
            with contextlib.suppress(UserError):
                fuzzed.run(seed)
    for number, seed in enumerate(fuzzed.seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    words = place.with_suffix(".words")
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in fuzzed.words if word and len(word) < 64))

    def run(content: bytes) -> None:
        start = time.monotonic()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                fuzzed.run(content)
        except UserError as error:
            if any(len(line.splitlines()) != 1 or len(line) > 2000 for line in error.mistakes):
                _keep(found, content, "LongLine")
        except Exception as error:  # noqa: BLE001  whatever it is, it is what is looked for
            _keep(found, content, _place_of(error))
        if time.monotonic() - start > SLOW:
            _keep(found, content, "slow")

    longest = max(LONGEST, *(len(seed) + 64 for seed in fuzzed.seeds))
    options = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY}", f"-artifact_prefix={found}/", "-timeout=60"]
    options += [f"-max_len={longest}", "-print_final_stats=1", "-verbosity=0", "-seed=1"]
    options += [f"-dict={words}"] if words.stat().st_size else []
    atheris.Setup([name, *options, str(corpus)], run)
    atheris.Fuzz()


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode(errors="surrogatepass"))


def _place_of(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in last if str(PROJECT) in frame.filename and ".venv" not in frame.filename]
    return f"{type(error).__name__}-{Path(ours[-1].filename).stem}-{ours[-1].lineno}-{Path(last[-1].filename).stem}"


def _keep(found: Path, content: bytes, why: str) -> None:
    """Keep the shortest input for each reason."""
    file = found / why
    if not file.exists() or file.stat().st_size > len(content):
        file.write_bytes(content)
        with contextlib.suppress(Exception):
            file.with_suffix(".traceback").write_text(traceback.format_exc())


def main(folder: Path, seconds: int, names: list[str]) -> None:
    executed, silent = 0, False
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        end = time.monotonic() + seconds / len(names)
        runs = crashes = 0
        while (left := int(end - time.monotonic())) > 1:  # a crash ends the process, and another goes on
            command = [sys.executable, "-m", "tests.support.fuzz", "--one", name, str(folder), str(left)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=_environment())
            (folder / f"{name}.{crashes}.log").write_text(done.stdout + done.stderr)
            counts = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
            runs += int(counts[0]) if counts else 0
            if done.returncode == 0:
                break
            crashes += 1
            if not counts and crashes > 3:
                break
        kept = [path.name for path in (folder / "found" / name).iterdir() if path.suffix != ".traceback"]
        print(
            f"{name:14} {runs:8} inputs, {crashes} crashes, found: {', '.join(sorted(kept)) or 'nothing'}", flush=True
        )
        executed += runs
        silent = silent or not runs
    print(f"{executed} inputs")
    sys.exit(silent or any(path.is_file() for path in (folder / "found").rglob("*")))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        fuzz(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        given = sys.argv[3:]
        main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 600, given or list(TARGETS))
