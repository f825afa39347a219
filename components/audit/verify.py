"""Verifies a checkpoint's chain: every digest is computed anew and compared with what was recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.audit.find import Checkpoint
from components.audit.snapshots import WORKSPACE, Snapshot
from components.provenance.digests import digest_set
from components.provenance.lockfile import file_md5, text_md5
from components.provenance.pipeline import FOLDER
from components.provenance.recorded import Digests, parse_digests

LINKS = {  # stage -> what it must have read as an earlier stage wrote it
    "score": ("data/pool.parquet", "data/iterations/{parent}/candidates.parquet", "models/{parent}"),
    "select": ("data/pool.parquet", "data/iterations/{key}/scores.parquet"),
    "finetune": ("data/iterations/{key}/subset.parquet", "models/{parent}", "state/{parent}"),
    "evaluate": ("data/holdout.parquet", "models/{key}"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison of the digest that was recorded for an artifact with the digest that it has."""

    artifact: str
    recorded: str
    computed: str | None
    """None for an artifact that is not there."""

    @property
    def holds(self) -> bool:
        return self.recorded == self.computed

    def __str__(self) -> str:
        """One line, with both digests in full where they differ."""
        if self.holds:
            return f"ok        {self.artifact}  {self.recorded[:16]}"
        return f"MISMATCH  {self.artifact}  recorded {self.recorded}, found {self.computed or 'nothing'}"


def verify_statements() -> Iterator[Check]:
    """Compare the workspace's statements with dvc.lock, by MD5, before anything that they record is relied on.

    A statement that dvc.lock does not name is left from an iteration that params.yaml no longer has.
    """
    for path, recorded in sorted(Snapshot(WORKSPACE).hashes.items()):
        if path.startswith(f"{FOLDER}/") and Path(path).is_file():
            yield Check(path, recorded, file_md5(Path(path)))


def verify_checkpoint(checkpoint: Checkpoint) -> Iterator[Check]:
    """Compute every digest along the chain anew: of the statements, of the outputs, and of what links the stages."""
    snapshot = checkpoint.snapshot
    stages = ["base_model", "ingest", "dedupe"]
    stages += [f"{name}@{key}" for key in checkpoint.iterations for name in LINKS]
    for stage in stages:
        yield _verify_statement(snapshot, stage)
    for stage in stages:
        for path, recorded in snapshot.stage(stage).outputs.items():
            yield from compare_digests(path, recorded, _compute_digests(snapshot, path))
        yield from _verify_links(snapshot, stage)


def _verify_statement(snapshot: Snapshot, stage: str) -> Check:
    """Compare a statement with dvc.lock, by MD5."""
    path = f"{FOLDER}/{stage}.json"
    text = snapshot.statement_texts.get(path)
    md5 = None if text is None else text_md5(text.encode())
    return Check(path, snapshot.hashes.get(path, "nothing in dvc.lock"), md5)


def compare_digests(artifact: str, recorded: Digests, computed: Digests | None) -> Iterator[Check]:
    """One check of the digest by which this project knows the artifact, and one of dirHash where both have it."""
    yield Check(artifact, recorded.digest, computed.digest if computed else None)
    if recorded.dir_hash and computed and computed.dir_hash:
        yield Check(f"{artifact} (dirHash)", recorded.dir_hash, computed.dir_hash)


def measure(path: Path) -> Digests | None:
    """The digests of a file or folder, from every byte; None where there is none."""
    return parse_digests({"digest": digest_set(path)}) if path.exists() else None


def _compute_digests(snapshot: Snapshot, path: str) -> Digests | None:
    if snapshot.ref != WORKSPACE and snapshot.has(path):  # a small file that git holds
        return Digests(hashlib.sha256(snapshot.read(path).encode()).hexdigest(), None)
    file = snapshot.find(path)
    return measure(file) if file else None


def _verify_links(snapshot: Snapshot, stage: str) -> Iterator[Check]:
    """Compare what a stage read with what an earlier stage wrote."""
    name, _, key = stage.partition("@")
    parent = "base" if key in ("", "1") else str(int(key) - 1)
    inputs = snapshot.stage(stage).inputs
    for pattern in LINKS.get(name, ()):
        path = pattern.format(key=key, parent=parent)
        written = snapshot.recorded_digests(path) or Digests("nothing", None)
        yield from compare_digests(f"{path} as {stage} read it", written, inputs.get(path))
