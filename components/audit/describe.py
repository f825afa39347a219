"""Which data trained which checkpoint, and whether anything was swapped since: what `iterit audit` answers.

A checkpoint is known by the digest of its folder. Its chain goes from the base model over every iteration to it; the
statements of one snapshot (components/history.py) tell it, and their digests tie it together: what an iteration read
is what the one before wrote.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.audit.find import Checkpoint
from components.audit.index import open_index
from components.audit.snapshots import WORKSPACE, Snapshot, git
from components.core.errors import UserError
from components.provenance.pipeline import FOLDER
from components.provenance.statements import digest_in

SHOWN = 10  # records of each iteration, without --records


def describe_checkpoint(checkpoint: Checkpoint, *, every_record: bool = False) -> dict[str, Any]:
    """The chain from the base model to the checkpoint, as plain data."""
    snapshot = checkpoint.snapshot
    last = 0 if checkpoint.iteration == "base" else int(checkpoint.iteration)
    return {
        "checkpoint": checkpoint.digest,
        "recorded_in": snapshot.ref,
        "sealed": sealed(checkpoint.digest),
        "base_model": {
            "digest": snapshot.recorded_digest("models/base"),
            "params": build_definition(snapshot, "base_model")["externalParameters"]["params"],
        },
        "iterations": [
            _iteration(snapshot, key, every_record=every_record) for key in snapshot.iterations if int(key) <= last
        ],
    }


def sealed(digest: str) -> list[dict[str, Any]]:
    """The tags of the sealed runs that a checkpoint was made, kept or registered in, the earliest first.

    Of each: the tag, MLflow's run, Prefect's flow run, and whether it was this checkpoint that was registered.
    """
    query = "select ref from checkpoint where digest = ? and ref != ? order by place"
    recorded_in = {ref: place for place, (ref,) in enumerate(open_index().execute(query, [digest, WORKSPACE]))}
    try:
        listed = git("tag", "--list", "--format=%(refname:short) %(*objectname)", "iterit/*").splitlines()
    except subprocess.CalledProcessError:
        return []
    tags = [line.split(" ") for line in listed]
    found = []
    for _, name in sorted((recorded_in[commit], name) for name, commit in tags if commit in recorded_in):
        try:
            message = json.loads(git("tag", "--list", "--format=%(contents)", name))
            found.append({"tag": name, **message, "registered": message["checkpoint"] == digest})
        except (KeyError, TypeError, json.JSONDecodeError):
            continue  # somebody else's tag
    return found


def build_definition(snapshot: Snapshot, stage: str) -> dict[str, Any]:
    try:
        definition: dict[str, Any] = snapshot.statements[stage]["predicate"]["buildDefinition"]
    except KeyError:
        raise UserError(
            f"{FOLDER}/{stage}.json ({snapshot.ref}): no statement; `dvc repro {stage}` writes it"
        ) from None
    return definition


def _iteration(snapshot: Snapshot, key: str, *, every_record: bool) -> dict[str, Any]:
    definition = build_definition(snapshot, f"finetune@{key}")
    materials = definition["resolvedDependencies"]
    code = next((one for one in materials if one["name"] == "code"), None)
    params = {**build_definition(snapshot, f"select@{key}")["externalParameters"]["params"]}
    params |= definition["externalParameters"]["params"]
    evaluated = f"metrics/evaluate/{key}.json"
    picks = _picks(snapshot, key)
    return {
        "iteration": key,
        "checkpoint": snapshot.recorded_digest(f"models/{key}"),
        "subset": snapshot.recorded_digest(f"data/iterations/{key}/subset.parquet"),
        "candidates": _input(snapshot, f"score@{key}", "candidates.parquet"),
        "pool": snapshot.recorded_digest("data/pool.parquet"),
        "records": len(picks),
        "sources": {source: sum(one["source"] == source for one in picks) for source in _ordered(picks, "source")},
        "picks": picks if every_record else picks[:SHOWN],
        "params": params,
        "seeds": definition["internalParameters"]["seeds"],
        "code": {"commit": code["digest"]["gitCommit"], "clean": code["annotations"]["clean"]} if code else None,
        "packages": [
            one["uri"].removeprefix("pkg:pypi/") for one in materials if "uri" in one and "pkg:" in one["uri"]
        ],
        "metrics": json.loads(snapshot.read(evaluated)) if snapshot.has(evaluated) else None,
    }


def _ordered(rows: Sequence[dict[str, Any]], name: str) -> list[str]:
    return sorted({row[name] for row in rows})


def _input(snapshot: Snapshot, stage: str, ending: str) -> str | None:
    found = build_definition(snapshot, stage)["resolvedDependencies"]
    return next((digest_in(one) for one in found if one["name"].endswith(ending)), None)


def _picks(snapshot: Snapshot, key: str) -> list[dict[str, Any]]:
    """The records that trained an iteration: rank, id, source, and complexity, diversity and score at the time."""
    selection = _table(snapshot, f"data/iterations/{key}/selection.parquet")
    subset = _table(snapshot, f"data/iterations/{key}/subset.parquet")
    source_of = dict(
        zip(
            *(pq.read_table(subset, columns=["id", "source"])[name].to_pylist() for name in ("id", "source")),
            strict=True,
        )
    )
    table = pq.read_table(selection)
    rows = table.filter(pc.equal(table["status"], "selected")).sort_by("rank").to_pylist()
    names = ("rank", "id", "complexity", "diversity", "score")
    return [{**{name: row[name] for name in names}, "source": source_of.get(row["id"], "?")} for row in rows]


def _table(snapshot: Snapshot, path: str) -> Path:
    file = snapshot.find(path)
    if file is None:
        raise UserError(
            f"{path} ({snapshot.ref}): neither here, in DVC's cache, nor on its remote; `dvc pull` may help"
        )
    return file
