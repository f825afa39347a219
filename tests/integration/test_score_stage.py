"""The score stage as a process: its files, its mistakes, its workers, and the model that it scores with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.core.params import load_settings
from components.core.paths import PARAMS
from components.core.settings.score import ScoreSettings
from components.data import tables
from components.data.embeddings import embeddings_writer
from components.data.records import write_records
from components.score import embed_pool, score_pool, summarize
from tests.support.project import SOURCE, edit_params
from tests.support.records import ask, numbered
from tests.support.small_model import make_small_model

TOLERANCE = 5e-5  # float32 kernels round differently for different shapes
MANY = numbered(20)
IDS = [record.id for record in MANY]


def shards() -> list[Path]:
    return sorted(Path(".iterit/scores").rglob("*.parquet"))


def read_complexity() -> list[float]:
    values: list[float] = tables.read(Path("scores.parquet"), tables.SCORES)["complexity"].to_pylist()
    return values


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the inputs of the stage: twenty records, all of them candidates."""
    monkeypatch.chdir(tmp_path)
    write_records(Path("pool.parquet"), MANY)
    write_records(Path("targets.parquet"), [])
    tables.write(Path("candidates.parquet"), pa.table({"id": IDS}), tables.CANDIDATES)
    PARAMS.write_bytes((SOURCE / PARAMS).read_bytes())
    edit_params(tmp_path, {"score": {"max_misaligned_share": 1.0}})
    return tmp_path


def run_stage(folder: Path, model: Path, base: Path, proxy: Path) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "components.score", "--iteration", "1", "--pool", "pool.parquet"),
        *("--model", str(model), "--base-model", str(base), "--proxy-model", str(proxy)),
        *("--candidates", "candidates.parquet", "--scores", "scores.parquet", "--metrics", "metrics.json"),
        *("--targets", "targets.parquet", "--embeddings", "embeddings.parquet"),
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_two_processes_give_the_table_of_a_single_one(folder: Path, small_model: Path) -> None:
    records = [*MANY, *(ask(f"{number}?", f"{number} of many") for number in range(300))]  # of three windows
    write_records(Path("pool.parquet"), records)
    ids = [record.id for record in records]
    tables.write(Path("candidates.parquet"), pa.table({"id": ids}), tables.CANDIDATES)
    complexity = []
    for processes in (1, 2):
        edit_params(folder, {"score": {"processes": processes}})
        done = run_stage(folder, small_model, small_model, small_model)
        assert done.returncode == 0, done.stderr
        assert len(shards()) == 3
        assert tables.read(Path("scores.parquet"), tables.SCORES)["id"].to_pylist() == ids
        complexity.append(read_complexity())
        for shard in shards():
            shard.unlink()
    np.testing.assert_allclose(complexity[0], complexity[1], atol=TOLERANCE)


def test_an_error_in_a_worker_is_one_line_of_the_stage(folder: Path, small_model: Path) -> None:
    edit_params(folder, {"score": {"processes": 2, "max_length": 4096}})
    done = run_stage(folder, small_model, small_model, small_model)
    assert done.returncode == 2
    message = f"error: {PARAMS}: score.max_length: 4096 is more than the 2048 positions of the model"
    assert done.stderr.splitlines()[-1] == message
    assert not Path("scores.parquet").exists()


def test_a_parameter_decides_which_model_scores(folder: Path, small_model: Path, tmp_path: Path) -> None:
    models = [make_small_model(tmp_path / str(seed), seed=seed) for seed in (1, 2, 3)]
    by_model: dict[str, list[float]] = {}
    edit_params(folder, {"proxy_model": {"kind": "folder", "path": "proxy"}}, replace=True)
    for name in ("current", "base", "proxy"):
        edit_params(folder, {"score": {"model": name}})
        done = run_stage(folder, *models)
        assert done.returncode == 0, done.stderr
        by_model[name] = read_complexity()
    for (name, complexity), model in zip(by_model.items(), models, strict=True):
        expected = score_pool(MANY, IDS, model, ScoreSettings(max_misaligned_share=1.0))["complexity"].to_pylist()
        np.testing.assert_allclose(complexity, expected, atol=TOLERANCE, err_msg=name)


def test_without_a_model_the_candidates_are_listed_and_nothing_is_computed(folder: Path, small_model: Path) -> None:
    edit_params(folder, {"score": {"model": "none"}, "select": {"strategy": "random"}})
    done = run_stage(folder, small_model, small_model, small_model)
    assert (done.returncode, done.stderr) == (0, "")
    scores = tables.read(Path("scores.parquet"), tables.SCORES)
    assert scores["id"].to_pylist() == IDS
    assert not scores["complexity"].drop_null().length()
    assert scores["reason"].null_count == len(IDS)
    assert min(scores["response_tokens"].to_pylist()) > 0


def test_embeddings_are_computed_by_two_processes_and_written_by_one(folder: Path, small_model: Path) -> None:
    pool = [*MANY, *(ask(f"{number}?", f"{number} of many") for number in range(300))]  # of three windows
    targets = numbered(3)
    write_records(Path("pool.parquet"), pool)
    write_records(Path("targets.parquet"), targets)
    ids = [record.id for record in pool]
    tables.write(Path("candidates.parquet"), pa.table({"id": ids}), tables.CANDIDATES)
    edit_params(folder, {"score": {"measure": "embedding", "processes": 2}, "select": {"strategy": "rds+"}})
    edit_params(folder, {"ingest": {"files": {"aim": {"path": "aim.jsonl", "target": True}}}})
    done = run_stage(folder, small_model, small_model, small_model)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(Path(".iterit/embeddings").rglob("*.parquet"))) == 4  # the targets, too
    scores = tables.read(Path("scores.parquet"), tables.SCORES)
    assert scores["id"].to_pylist() == ids
    assert not scores["complexity"].drop_null().length()
    written = tables.read(Path("embeddings.parquet"), tables.EMBEDDINGS)
    assert written["id"].to_pylist() == [record.id for record in [*targets, *pool]]
    assert written["target"].to_pylist() == [True] * 3 + [False] * len(pool)
    with embeddings_writer(Path("again.parquet")) as append:  # from the store
        settings = load_settings().score
        assert embed_pool(pool, ids, targets, small_model, settings, append=append) == scores
    assert Path("again.parquet").read_bytes() == Path("embeddings.parquet").read_bytes()


def test_the_stage_is_quiet_and_writes_the_same_bytes_again(folder: Path, small_model: Path) -> None:
    done = run_stage(folder, small_model, small_model, small_model)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("score@1: 20 records, mean complexity ")
    scores = tables.read(Path("scores.parquet"), tables.SCORES)
    assert scores["id"].to_pylist() == IDS
    metrics = json.loads(Path("metrics.json").read_text(encoding="utf-8"))
    assert metrics == asdict(summarize(scores))
    assert metrics["variant"] == "ifd"
    first = Path("scores.parquet").read_bytes()
    shutil.rmtree(".iterit")
    assert run_stage(folder, small_model, small_model, small_model).returncode == 0
    assert Path("scores.parquet").read_bytes() == first


def test_too_many_misaligned_records_are_one_line_and_leave_no_output(folder: Path, small_model: Path) -> None:
    edit_params(folder, {"score": {"max_misaligned_share": 0.0}})
    done = run_stage(folder, small_model, small_model, small_model)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not Path("scores.parquet").exists()
