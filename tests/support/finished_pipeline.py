"""A project folder as a finished pipeline run leaves it: real DVC, valid tables, two iterations of a small model."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from ruamel.yaml import YAML

from components.core.files import write_csv, write_json
from components.data import tables
from components.data.records import Message, make_record, read_records, to_table, write_records
from components.evaluation.holdout import summarize

PROJECT = Path(__file__).parents[2]
RECORDS = [
    make_record("texts", [Message("user", f"Say {word}."), Message("assistant", f"{word}, {word} it is.")])
    for word in ("one", "two", "three", "four", "five", "six")
]
REJECTED = "f" * 32  # id of a conversation that was too long
ITERATIONS = ("1", "2")


def make_finished_pipeline(folder: Path, models: dict[str, Path]) -> Path:
    """Make the project in `folder`. `models`: folders for base, 1 and 2. DVC writes dvc.lock from the files."""
    folder.mkdir(parents=True)
    for name in ("components", "conf", ".dvc"):
        ignore = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
        shutil.copytree(PROJECT / name, folder / name, ignore=ignore)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copyfile(PROJECT / name, folder / name)
    write_params(folder, {})
    (folder / "data" / "incoming").mkdir(parents=True)
    write_json(folder / "data/sources/incoming.json", {})
    pool, holdout = RECORDS[:4], RECORDS[4:]
    write_records(folder / "data/raw.parquet", RECORDS)
    write_records(folder / "data/pool.parquet", pool)
    write_records(folder / "data/holdout.parquet", holdout)
    write_records(folder / "data/target.parquet", [])
    rejected = {"source": "texts", "where": "a.json row 1", "id": REJECTED, "reason": "too_long", "bad": True}
    rows = pa.Table.from_pylist([rejected | {"detail": "9 characters"}], schema=tables.REJECTED)
    tables.write(folder / "data/rejected.parquet", rows, tables.REJECTED)
    tables.write(folder / "data/duplicates.parquet", tables.DUPLICATES.empty_table(), tables.DUPLICATES)
    tables.write(folder / "data/noise.parquet", tables.NOISE.empty_table(), tables.NOISE)
    texts, overlaps = tables.BENCHMARK_TEXTS.empty_table(), tables.OVERLAPS.empty_table()
    tables.write(folder / "data/benchmarks/texts.parquet", texts, tables.BENCHMARK_TEXTS)
    tables.write(folder / "data/contamination.parquet", overlaps, tables.OVERLAPS)
    write_json(folder / "metrics/contamination.json", {"ngram": 13})
    write_json(folder / "metrics/ingest.json", {"records": 6, "rejected": {"too_long": 0}})
    write_json(folder / "metrics/dedupe.json", {"pool": 4, "holdout": 2})
    write_json(folder / "models/proxy/none.json", {})
    candidates = to_table(pool).select(["id"])
    tables.write(folder / "data/iterations/base/candidates.parquet", candidates, tables.CANDIDATES)
    put_model(folder, "base", models["base"], loss=3.0)
    for number, key in enumerate(ITERATIONS, 1):
        put_model(folder, key, models[key], loss=3.0 - number / 2)
        _put_iteration(folder, number, key)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    commit(folder)
    # MLflow's tables are created once, for all copies of the project
    make_store = "from components.tracking.client import client; client().search_experiments()"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    done = subprocess.run(
        [sys.executable, "-c", make_store], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", ""), "MLflow is not quiet"
    return folder


def write_params(folder: Path, changes: dict[str, dict[str, object]]) -> None:
    """The project's own params.yaml with two iterations and `changes`, block by block."""
    yaml = YAML()
    params = yaml.load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    params["iterations"] = {"1": {"parent": "base"}, "2": {"parent": "1"}}
    for block, values in changes.items():
        params[block] |= values
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def put_model(folder: Path, key: str, model: Path, *, loss: float) -> None:
    """Write the checkpoint of an iteration, and its evaluation on the holdout."""
    shutil.rmtree(folder / "models" / key, ignore_errors=True)
    shutil.copytree(model, folder / "models" / key)
    write_json(folder / "state" / key / "progress.json", {"step": 0, "steps_per_iteration": None})
    write_json(folder / "samples" / f"{key}.json", {"samples": []})
    holdout = read_records(folder / "data/holdout.parquet")
    same = {"tokens": 10, "nll_conditional": loss, "nll_unconditional": loss - math.log(0.5), "complexity": 0.5}
    rows = [{"id": record.id, "source": record.source, **same} for record in holdout]
    evaluations = pa.Table.from_pylist(rows, schema=tables.EVALUATIONS)
    tables.write(folder / "data/evaluations" / f"{key}.parquet", evaluations, tables.EVALUATIONS)
    none = tables.EVALUATIONS.empty_table()
    tables.write(folder / "data/target_evaluations" / f"{key}.parquet", none, tables.EVALUATIONS)
    tables.write(folder / "data/answers" / f"{key}.parquet", tables.ANSWERS.empty_table(), tables.ANSWERS)
    write_json(folder / "metrics/evaluate" / f"{key}.json", {"checkpoint": "0" * 64, **asdict(summarize(evaluations))})


def _put_iteration(folder: Path, number: int, key: str) -> None:
    place, pool = folder / "data/iterations" / key, RECORDS[:4]
    scores = [
        {"id": record.id, "response_tokens": 5, "nll_conditional": 1.0, "nll_unconditional": 2.0, "complexity": 0.3679}
        for record in pool
    ]
    table = pa.Table.from_pylist([{**row, "reason": None} for row in scores], schema=tables.SCORES)
    tables.write(place / "scores.parquet", table, tables.SCORES)
    tables.write(place / "embeddings.parquet", tables.EMBEDDINGS.empty_table(), tables.EMBEDDINGS)
    picks = [
        {"id": record.id, "rank": rank, "complexity": 0.3679, "diversity": 1.0, "score": 0.3679, "status": "selected"}
        for rank, record in enumerate(pool[:2], 1)
    ]
    selection = pa.Table.from_pylist([{**row, "reason": ""} for row in picks], schema=tables.SELECTION)
    tables.write(place / "selection.parquet", selection, tables.SELECTION)
    write_records(place / "subset.parquet", pool[:2])
    tables.write(place / "candidates.parquet", to_table(pool[:3]).select(["id"]), tables.CANDIDATES)
    histogram = {"iteration": key, "complexity": "0.35", "candidates": 4, "selected": 2}
    write_csv(place / "complexity.csv", list(histogram), [histogram])
    steps = [(2 * number - 1, key, 4.0 / number, 0.1, 1.0), (2 * number, key, 3.0 / number, 0.05, 1.0)]
    columns = tables.STEPS.names
    write_csv(place / "steps.csv", columns, [dict(zip(columns, step, strict=True)) for step in steps])
    write_json(folder / f"metrics/score/{key}.json", {"records": 4, "mean_complexity": 0.3679})
    write_json(folder / f"metrics/select/{key}.json", {"selected": 2, "mean_score": 0.3679})
    write_json(folder / f"metrics/finetune/{key}.json", {"steps": 2, "training_loss": 3.5 / number})


def commit(folder: Path) -> None:
    """Write statements and dvc.lock as if every stage but register had just written the files as they are now."""
    _python, *report = YAML(typ="safe").load(folder / "dvc.yaml")["stages"]["report"]["cmd"].split()
    subprocess.run([sys.executable, *report], cwd=folder, check=True)
    names = ["manifest@incoming", "base_model", "ingest", "benchmark_data", "dedupe", "evaluate_base"]
    names += ["contamination", "report"]
    names += [f"{name}@{key}" for key in ITERATIONS for name in ("score", "select", "finetune", "evaluate")]
    subprocess.run([sys.executable, "-m", "components.provenance.statements", *names], cwd=folder, check=True)
    dvc(folder, "commit", "--quiet", "--force", *names)


def dvc(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this environment's `dvc`; its stages' `python` is this one, too."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
