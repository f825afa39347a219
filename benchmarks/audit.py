"""How long `iterit audit record` takes in a history of many retrainings.

The history is what the pipeline leaves, without the training: statements, tables in DVC's cache, and one commit per
retraining. The whole command is timed, with the index up to date and with the index made anew.

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
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.report import Row
from components.core.files import write_json
from components.core.paths import LOCK
from components.data import tables
from components.provenance.digests import file_digest
from components.provenance.lockfile import file_md5
from components.provenance.statements import write_bundle

PROJECT = Path(__file__).parent.parent
TURNS = 5
SELECTION = Path("data/iterations/1/selection.parquet")


def make_history(folder: Path, retrainings: int, subset: int) -> str:
    """Commit the retrainings, each with a random subset of a pool twice its size; returns the id of a record."""
    _run(folder, "git", "init", "--quiet")
    (folder / ".gitignore").write_text("/.iterit/\n/.dvc/cache/\n/data/\n")
    ids = [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(2 * subset)]
    random = np.random.default_rng(0)
    with contextlib.chdir(folder):
        for number in range(retrainings):
            tables.write(SELECTION, _random_selection(ids, subset, random), tables.SELECTION)
            _write_run(number)
            _run(folder, "git", "add", "--all")
            _run(folder, "git", "commit", "--quiet", "--message", f"retraining {number}")
    return ids[0]


def _random_selection(ids: Sequence[str], subset: int, random: np.random.Generator) -> pa.Table:
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
    )
    return table.cast(tables.SELECTION)


def _write_run(number: int) -> None:
    """Write what a retraining leaves beside its selection: a copy in DVC's cache, statements, dvc.lock, the bundle."""
    md5 = file_md5(SELECTION)
    cached = Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(SELECTION.read_bytes())
    checkpoint = hashlib.sha256(b"%d" % number).hexdigest()
    selection = _write_statement("select@1", SELECTION.as_posix(), {"sha256": file_digest(SELECTION)})
    model = _write_statement("finetune@1", "models/1", {"iteritFolder": checkpoint})
    outputs = {"select@1": [{"path": SELECTION.as_posix(), "md5": md5}, selection], "finetune@1": [model]}
    stages = {stage: {"outs": outs} for stage, outs in outputs.items()}
    LOCK.write_text(json.dumps({"schema": "2.0", "stages": stages}))
    write_bundle()


def _write_statement(stage: str, output: str, digests: Mapping[str, str]) -> dict[str, str]:
    """Write the statement of a stage with one output; returns the statement's entry in dvc.lock."""
    definition = {"externalParameters": {"stage": stage}, "resolvedDependencies": []}
    subject = [{"name": output, "digest": digests}]
    file = Path("provenance") / f"{stage}.json"
    write_json(file, {"subject": subject, "predicate": {"buildDefinition": definition}})
    return {"path": file.as_posix(), "md5": file_md5(file)}


def _run(folder: Path, *command: str) -> str:
    who = {f"GIT_{role}_{what}": "bench@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **who, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=environment).stdout


def run(retrainings: int = 100, subset: int = 10_000, turns: int = TURNS) -> list[Row]:
    """Seconds of `iterit audit record` (the median of `turns`), and of `iterit audit rebuild`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        record = make_history(folder, retrainings, subset)
        audit = (sys.executable, "-m", "flows.cli", "audit")
        started = time.perf_counter()
        _run(folder, *audit, "rebuild")
        rebuilt = time.perf_counter() - started
        seconds = []
        for _ in range(turns):
            started = time.perf_counter()
            answer = _run(folder, *audit, "record", record)
            seconds.append(time.perf_counter() - started)
        assert 0 < answer.count("  trained ") < retrainings
    title = f"audit, {retrainings} retrainings with subsets of {subset:,}"
    return [
        Row(f"{title}: a record's whereabouts", statistics.median(seconds), None, "s", "at most 2 s"),
        Row(f"{title}: the index made anew", rebuilt, None, "s", ""),
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
