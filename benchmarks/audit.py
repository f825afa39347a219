"""How long a record takes to find in a history of many retrainings.

The history is made as the pipeline makes it, without the training: statements, tables in DVC's cache, a commit for
every retraining. Timed is the whole command, with the index up to date and made anew.

    python -m benchmarks.audit --retrainings 100 --subset 10000
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.report import Row
from components.core.files import write_json
from components.data import tables
from components.provenance.digests import file_digest
from components.provenance.statements import write_bundle

PROJECT = Path(__file__).parent.parent
TURNS = 5


def make_history(folder: Path, retrainings: int, subset: int) -> str:
    """Commit so many retrainings, each with another subset of a pool twice its size; the id of a record in some."""
    _run(folder, "git", "init", "--quiet")
    (folder / ".gitignore").write_text("/.iterit/\n/.dvc/cache/\n/data/\n")
    ids = [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(2 * subset)]
    random = np.random.default_rng(0)
    for number in range(retrainings):
        lock: dict[str, Any] = {"schema": "2.0", "stages": {}}
        rank = np.full(len(ids), -1)
        rank[random.permutation(len(ids))[:subset]] = np.arange(1, subset + 1)
        selected = rank > 0
        table = pa.table(
            {
                "id": ids,
                "rank": pa.array(np.where(selected, rank, 0), mask=~selected),
                "complexity": random.uniform(0.2, 1, len(ids)),
                "diversity": pa.array(random.uniform(0, 9, len(ids)), mask=~selected),
                "score": pa.array(random.uniform(0, 9, len(ids)), mask=~selected),
                "status": np.where(selected, "selected", "eligible"),
                "reason": np.where(selected, "selected", "could be selected, but is not among the picks"),
            }
        ).cast(tables.SELECTION)
        path = "data/iterations/1/selection.parquet"
        tables.write(folder / path, table, tables.SELECTION)
        content = (folder / path).read_bytes()
        md5 = _md5(content)
        place = folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        outputs = {path: file_digest(folder / path), "models/1": hashlib.sha256(b"%d" % number).hexdigest()}
        recorded = {"select@1": [{"path": path, "md5": md5}], "finetune@1": []}
        for stage, name in (("select@1", path), ("finetune@1", "models/1")):
            recorded[stage].append(_statement(folder, stage, {name: outputs[name]}))
        lock["stages"] = {stage: {"outs": entries} for stage, entries in recorded.items()}
        (folder / "dvc.lock").write_text(json.dumps(lock))
        with contextlib.chdir(folder):
            write_bundle()
        _run(folder, "git", "add", "--all")
        _run(folder, "git", "commit", "--quiet", "--message", f"retraining {number}")
    return ids[0]


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _statement(folder: Path, stage: str, subject: dict[str, str]) -> dict[str, str]:
    """Write it; its entry of dvc.lock."""
    definition = {"externalParameters": {"stage": stage}, "resolvedDependencies": []}
    statement = {
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subject.items()],
        "predicate": {"buildDefinition": definition},
    }
    path = f"provenance/{stage}.json"
    write_json(folder / path, statement)
    return {"path": path, "md5": _md5((folder / path).read_bytes())}


def _run(folder: Path, *command: str) -> str:
    who = {f"GIT_{role}_{what}": "bench@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **who, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=environment).stdout


def run(retrainings: int = 100, subset: int = 10_000, turns: int = TURNS) -> list[Row]:
    """Seconds of `iterit audit record`, and of making its index anew."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        record = make_history(folder, retrainings, subset)
        audit = (sys.executable, "-m", "flows.cli", "audit")
        begun = time.perf_counter()
        _run(folder, *audit, "rebuild")
        rebuilt = time.perf_counter() - begun
        seconds = []
        for _ in range(turns):
            begun = time.perf_counter()
            answer = _run(folder, *audit, "record", record)
            seconds.append(time.perf_counter() - begun)
        assert 0 < answer.count("  trained ") < retrainings
    of = f"audit, {retrainings} retrainings with subsets of {subset:,}"
    return [
        Row(f"{of}: a record's whereabouts", statistics.median(seconds), None, "s", "at most 2 s"),
        Row(f"{of}: the index made anew", rebuilt, None, "s", ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__.splitlines()[0])
    parser.add_argument("--retrainings", type=int, default=100)
    parser.add_argument("--subset", type=int, default=10_000)
    options = parser.parse_args()
    for row in run(options.retrainings, options.subset):
        print(row)


if __name__ == "__main__":
    main()
