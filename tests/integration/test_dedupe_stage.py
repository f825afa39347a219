"""The stage dedupe as a command: reproducible outputs, and counts that add up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from components.core.files import read_json
from components.data import tables
from components.data.records import read_records, write_records
from tests.support.corpus import make_corpus
from tests.support.project import SOURCE, edit_params


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    corpus = make_corpus()
    (tmp_path / "params.yaml").write_bytes((SOURCE / "params.yaml").read_bytes())
    edit_params(
        tmp_path,
        {
            "ingest": {"docstrings": {"a": {}, "b": {}}, "files": {}},
            "dedupe": {"holdout_share": 0.2, "max_holdout": 20, "max_records": 90},
        },
    )
    write_records(tmp_path / "raw.parquet", corpus)
    write_records(tmp_path / "targets", [])
    tables.write(tmp_path / "texts", tables.BENCHMARK_TEXTS.empty_table(), tables.BENCHMARK_TEXTS)
    names = ("pool", "holdout", "duplicates", "noise", "candidates", "metrics")
    inputs = ["--records", "raw.parquet", "--targets", "targets", "--texts", "texts"]
    written = []
    for seed in ("1", "2"):  # Python's own hash of texts differs between the two
        options = [option for name in names for option in (f"--{name}", f"{seed}/{name}")]
        ended = subprocess.run(
            [sys.executable, "-m", "components.dedupe", *inputs, *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        written.append([(tmp_path / seed / name).read_bytes() for name in names])
    assert written[0] == written[1]
    pool = read_records(tmp_path / "1" / "pool")
    candidates = tables.read(tmp_path / "1" / "candidates", tables.CANDIDATES)
    assert candidates["id"].to_pylist() == [record.id for record in pool]
    metrics = read_json(tmp_path / "1" / "metrics")
    assert metrics["records"] == metrics["pool"] + metrics["holdout"] + sum(metrics["removed"].values()) == len(corpus)
