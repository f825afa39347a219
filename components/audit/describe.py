"""Describes a checkpoint: its chain from the base model over every iteration to it.

A checkpoint is known by the digest of its folder. The statements of one snapshot describe its chain, and their digests
tie it together: what an iteration read is what the one before it wrote.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.audit.find import Checkpoint
from components.audit.sealed import SealedRun, sealed_runs
from components.audit.snapshots import Snapshot
from components.core.errors import UserError
from components.provenance.recorded import CodeVersion

SHOWN = 10  # records of each iteration, unless all are asked for


@dataclass(frozen=True, slots=True)
class Pick:
    """A record that trained an iteration; complexity, diversity and score are those at the time of the pick."""

    rank: int
    id: str
    source: str
    """`?` when the subset does not have the record that the selection names."""
    complexity: float | None
    diversity: float | None
    score: float | None


@dataclass(frozen=True, slots=True)
class IterationDescription:
    """An iteration of a checkpoint's chain; artifacts are given by their digests."""

    iteration: str
    checkpoint: str | None
    subset: str | None
    candidates: str | None
    pool: str | None
    records: int
    sources: Mapping[str, int]
    """Source -> number of the iteration's records, sorted by source."""
    picks: list[Pick]
    params: Mapping[str, Any]
    """Parameters of `select` and `finetune`, as dvc.yaml groups them."""
    seeds: Mapping[str, int]
    code: CodeVersion | None
    """None outside a git repository."""
    packages: list[str]
    metrics: Mapping[str, Any] | None
    """The metrics on the holdout, as `evaluate` wrote them; None where it did not run."""


@dataclass(frozen=True, slots=True)
class BaseModelDescription:
    """The base model of a chain: its digest, and where it came from."""

    digest: str | None
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CheckpointDescription:
    """A checkpoint and its chain."""

    checkpoint: str
    recorded_in: str
    """The snapshot: a git commit, or `workspace`."""
    sealed: list[SealedRun]
    base_model: BaseModelDescription
    iterations: list[IterationDescription]


def describe_checkpoint(checkpoint: Checkpoint, *, every_record: bool = False) -> CheckpointDescription:
    """The chain from the base model to the checkpoint, with the first SHOWN records of each iteration or with all.

    Raises UserError when a statement or a table of the chain is lost.
    """
    snapshot = checkpoint.snapshot
    base_model = BaseModelDescription(snapshot.recorded_digest("models/base"), snapshot.stage("base_model").params)
    shown = None if every_record else SHOWN
    iterations = [_describe_iteration(snapshot, key, shown) for key in checkpoint.iterations]
    return CheckpointDescription(
        checkpoint.digest, snapshot.ref, sealed_runs(checkpoint.digest), base_model, iterations
    )


def _describe_iteration(snapshot: Snapshot, key: str, shown: int | None) -> IterationDescription:
    trained = snapshot.stage(f"finetune@{key}")
    picks = _read_picks(snapshot, key)
    metrics = f"metrics/evaluate/{key}.json"
    return IterationDescription(
        iteration=key,
        checkpoint=snapshot.recorded_digest(f"models/{key}"),
        subset=snapshot.recorded_digest(f"data/iterations/{key}/subset.parquet"),
        candidates=_candidates(snapshot, key),
        pool=snapshot.recorded_digest("data/pool.parquet"),
        records=len(picks),
        sources=dict(sorted(Counter(pick.source for pick in picks).items())),
        picks=picks[:shown],
        params={**snapshot.stage(f"select@{key}").params, **trained.params},
        seeds=trained.seeds,
        code=trained.code,
        packages=trained.packages,
        metrics=json.loads(snapshot.read(metrics)) if snapshot.has(metrics) else None,
    )


def _candidates(snapshot: Snapshot, key: str) -> str | None:
    """Digest of the candidates that the iteration scored."""
    inputs = snapshot.stage(f"score@{key}").inputs
    return next((digests.digest for path, digests in inputs.items() if path.endswith("candidates.parquet")), None)


def _read_picks(snapshot: Snapshot, key: str) -> list[Pick]:
    """The records that trained an iteration, by rank."""
    subset = pq.read_table(_require_table(snapshot, key, "subset"), columns=["id", "source"])
    source_of = dict(zip(subset["id"].to_pylist(), subset["source"].to_pylist(), strict=True))
    selection = pq.read_table(_require_table(snapshot, key, "selection"))
    rows = selection.filter(pc.equal(selection["status"], "selected")).sort_by("rank").to_pylist()
    return [
        Pick(
            row["rank"],
            row["id"],
            source_of.get(row["id"], "?"),
            row["complexity"],
            row["diversity"],
            row["score"],
        )
        for row in rows
    ]


def _require_table(snapshot: Snapshot, key: str, name: str) -> Path:
    path = f"data/iterations/{key}/{name}.parquet"
    file = snapshot.find(path)
    if file is None:
        raise UserError(
            f"{path} ({snapshot.ref}): neither here, nor in DVC's cache, nor on its remote; `dvc pull` may fetch it"
        )
    return file
