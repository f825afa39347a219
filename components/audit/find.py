"""Finds a checkpoint in the project's history, by folder, digest, MLflow run or registered version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.audit.measure import measure
from components.audit.snapshots import WORKSPACE, Snapshot, snapshots
from components.core.errors import UserError
from components.core.params import read_params
from components.provenance.pipeline import FOLDER
from components.tracking import registry

SHORTEST_PREFIX = 8  # hex digits of a digest
HEX_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint, the newest snapshot that recorded it, and its iteration there ("base" for the base model)."""

    digest: str
    snapshot: Snapshot
    iteration: str

    @property
    def iterations(self) -> list[str]:
        """Keys of the iterations that led to it, in order; empty for the base model."""
        last = 0 if self.iteration == "base" else int(self.iteration)
        return [key for key in self.snapshot.iterations if int(key) <= last]


def find_checkpoint(reference: str) -> Checkpoint:
    """The checkpoint that `reference` names: a folder, a digest or at least its first 8 digits, an MLflow run id,
    models:/NAME/VERSION or models:/NAME@ALIAS. Raises UserError unless the history has exactly one such checkpoint.
    """
    digest = _digest_of_reference(reference)
    matches: dict[str, Checkpoint] = {}
    for snapshot in snapshots():
        for iteration in ("base", *snapshot.iterations):
            recorded = snapshot.recorded_digest(f"models/{iteration}")
            if recorded is not None and recorded.startswith(digest):
                matches.setdefault(recorded, Checkpoint(recorded, snapshot, iteration))
        if len(digest) == 64 and matches:
            break
    if len(matches) == 1:
        return next(iter(matches.values()))
    if matches:
        listed = ", ".join(sorted(matches))
        raise UserError(f"{reference}: {len(matches)} checkpoints' digests begin with it; give more digits: {listed}")
    raise UserError(f"{reference}: no checkpoint of this project's history has the digest {digest}")


def _digest_of_reference(reference: str) -> str:
    if Path(reference).is_dir() and (digests := measure(Path(reference))):
        return digests.digest
    is_hex = set(reference) <= HEX_DIGITS
    if reference.startswith("models:/") or (is_hex and len(reference) == 32):  # 32 digits: an MLflow run id
        return registry.checkpoint_digest(reference)
    if is_hex and len(reference) >= SHORTEST_PREFIX:
        return reference
    raise UserError(
        f"{reference}: neither a folder, {SHORTEST_PREFIX} or more hex digits of a checkpoint's digest, an MLflow run "
        "id, nor models:/NAME/VERSION or models:/NAME@ALIAS"
    )


def workspace_checkpoint() -> Checkpoint:
    """The checkpoint of the last iteration that params.yaml has and that was trained. Raises UserError without one."""
    snapshot = Snapshot(WORKSPACE)
    wanted = read_params().get("iterations")
    keys = [key for key in snapshot.iterations if not isinstance(wanted, dict) or key in map(str, wanted)]
    if not keys:
        raise UserError(f"{FOLDER}: no statement of a finetune stage; `iterit run` or `dvc repro` writes them")
    return Checkpoint(str(snapshot.recorded_digest(f"models/{keys[-1]}")), snapshot, keys[-1])
