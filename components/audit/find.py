"""TODO"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.audit.snapshots import WORKSPACE, Snapshot, snapshots
from components.core.errors import UserError
from components.provenance.digests import digest_of
from components.provenance.pipeline import FOLDER
from components.tracking import registry

SHORTEST_PREFIX = 8  # hex digits of a digest


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a checkpoint is told of: the newest snapshot that has it, and its iteration ("base" for the base model)."""

    digest: str
    snapshot: Snapshot
    iteration: str


def find_checkpoint(reference: str) -> Checkpoint:
    """`reference`: a folder, a digest or its first 8 digits or more, an MLflow run id, models:/NAME/VERSION or
    models:/NAME@ALIAS. Raises UserError when nothing in the history is that checkpoint.
    """
    digest = _digest_of_reference(reference)
    found: dict[str, Checkpoint] = {}
    for snapshot in snapshots():
        for iteration in ("base", *snapshot.iterations):
            made = snapshot.recorded_digest(f"models/{iteration}")
            if made is not None and made.startswith(digest):
                found.setdefault(made, Checkpoint(made, snapshot, iteration))
        if len(digest) == 64 and found:
            break
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UserError(f"{reference}: {len(found)} checkpoints begin so: {', '.join(sorted(found))}")
    raise UserError(f"{reference}: no checkpoint of this project's history has the digest {digest}")


def _digest_of_reference(reference: str) -> str:
    if Path(reference).is_dir():
        return digest_of(Path(reference))
    if reference.startswith("models:/") or _is_run_id(reference):
        return registry.find_checkpoint(reference)
    if len(reference) >= SHORTEST_PREFIX and set(reference) <= set("0123456789abcdef"):
        return reference
    raise UserError(
        f"{reference}: neither a folder, {SHORTEST_PREFIX} or more hex digits of a checkpoint's digest, an MLflow run "
        "id, nor models:/NAME/VERSION or models:/NAME@ALIAS"
    )


def _is_run_id(reference: str) -> bool:
    return len(reference) == 32 and set(reference) <= set("0123456789abcdef")


def workspace_checkpoint() -> Checkpoint:
    """That of the workspace's last iteration."""
    snapshot = Snapshot(WORKSPACE)
    if not snapshot.iterations:
        raise UserError(f"{FOLDER}: no statement of a fine-tuning; `iterit run` or `dvc repro` writes them")
    key = snapshot.iterations[-1]
    return Checkpoint(str(snapshot.recorded_digest(f"models/{key}")), snapshot, key)
