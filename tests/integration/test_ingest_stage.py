"""The stages manifest and ingest as commands: tables and counts, imports, exit codes, and errors of a single line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.core.files import read_json
from components.data import tables
from components.data.records import read_records
from tests.support.project import SOURCE, call, edit_params

GOOD = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(40)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_params(folder: Path, source: str, path: str) -> None:
    """The params.yaml of the project with a single source of files."""
    (folder / "params.yaml").write_bytes((SOURCE / "params.yaml").read_bytes())
    edit_params(folder, {"ingest": {"docstrings": {}, "files": {source: {"path": path}}, "datasets": {}}})


def command(stage: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a stage in the current folder; its imports are listed on stderr."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"components.{stage}", *options],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )


INGEST = "--manifests m --records raw.parquet --targets t.parquet --rejected rejected.parquet --metrics metrics.json"
INGEST = INGEST.split()


def test_the_stages_write_tables_and_counts_and_do_not_import_torch(folder: Path) -> None:
    write_params(folder, "incoming", "in")
    (folder / "in").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in GOOD)
    (folder / "in/a.jsonl").write_text(lines + '{"instruction"\n', encoding="utf-8")
    listed = command("manifest", "--source", "incoming", "--manifest", "m/incoming.json")
    assert listed.returncode == 0, listed.stderr[-2000:]
    (folder / "m/gone.json").write_text('{"files": [], "ignored": []}')
    ended = command("ingest", *INGEST)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout == "ingest: incoming: 41 read, 40 kept, 1 rejected, 0 over_cap\n"
    assert len(read_records(Path("raw.parquet"))) == 40
    assert tables.read(Path("rejected.parquet"), tables.REJECTED)["reason"].to_pylist() == ["broken_json"]
    assert read_json(Path("metrics.json")) == {
        "records": 40,
        "sources": {"incoming": {"read": 41, "kept": 40, "rejected": 1, "over_cap": 0}},
    }
    # a fresh clone would not have the manifest of a source that is gone
    assert [manifest.name for manifest in Path("m").iterdir()] == ["incoming.json"]
    before = Path("raw.parquet").read_bytes()
    assert command("ingest", *INGEST).returncode == 0
    assert Path("raw.parquet").read_bytes() == before
    for process in (listed, ended):
        loaded = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
        assert "components.core.settings.ingest" in loaded
        assert not loaded & {"torch", "transformers", "mlflow", "datasets", "sklearn"}


def test_a_user_error_ends_a_stage_with_a_single_line_and_leaves_no_output(folder: Path) -> None:
    write_params(folder, "mine", "a.parquet")
    pq.write_table(pa.Table.from_pylist(GOOD), "a.parquet")
    Path("a.parquet").write_bytes(Path("a.parquet").read_bytes()[:-40])
    assert command("manifest", "--source", "mine", "--manifest", "m/mine.json").returncode == 0
    ended = command("ingest", *INGEST)
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("import time:")]
    assert ended.returncode == 2
    assert len(lines) == 1 and lines[0].startswith("error: a.parquet: cannot be read: ")
    assert not list(folder.glob("*raw*")) and not list(folder.glob("*rejected*"))
    unknown = command("manifest", "--source", "typo", "--manifest", "m/typo.json")
    assert unknown.returncode == 2
    assert "error: params.yaml: ingest.files: no source 'typo'; there are mine" in unknown.stderr


ONE_STAGE = """
stages:
  manifest:
    foreach: ${ingest.files}
    do:
      cmd: python -m components.manifest --source ${key} --manifest data/sources/${key}.json
      deps: ["${item.path}"]
      outs: ["data/sources/${key}.json"]
"""


@pytest.mark.parametrize("tracked", [True, False])
def test_an_experiment_in_a_folder_of_its_own_has_the_files_of_the_project_or_refuses(
    folder: Path, tracked: bool
) -> None:
    write_params(folder, "mine", "in")
    (folder / "dvc.yaml").write_text(ONE_STAGE)
    (folder / "in").mkdir()
    (folder / "in/a.json").write_text("[]")
    call(folder, "git", "init", "--quiet")
    call(folder, "dvc", "init", "--quiet")
    (folder / ".gitignore").write_text("/data\n/.iterit\n" + ("" if tracked else "/in/b.json\n"))
    (folder / "in/b.json").write_text("[]")
    call(folder, "git", "add", "--all")
    call(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", "x")
    expect = 0 if tracked else 255
    printed = call(folder, "dvc", "exp", "run", "--temp", expect=expect, PYTHONPATH=str(SOURCE))
    assert tracked or "in: this experiment would train on other data than the project holds (in/b.json" in printed
