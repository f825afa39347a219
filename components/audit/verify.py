"""TODO"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.audit.describe import build_definition
from components.audit.find import Checkpoint
from components.audit.snapshots import WORKSPACE, Snapshot
from components.provenance.digests import digest_of
from components.provenance.lockfile import file_md5, text_md5
from components.provenance.pipeline import FOLDER
from components.provenance.statements import digest_in

LINKED = {  # what each stage must have read as another stage wrote it
    "score": ("data/pool.parquet", "data/iterations/{parent}/candidates.parquet", "models/{parent}"),
    "select": ("data/pool.parquet", "data/iterations/{key}/scores.parquet"),
    "finetune": ("data/iterations/{key}/subset.parquet", "models/{parent}", "state/{parent}"),
    "evaluate": ("data/holdout.parquet", "models/{key}"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: what was recorded for an artifact, and what it is."""

    artifact: str
    recorded: str
    found: str | None

    @property
    def holds(self) -> bool:
        return self.recorded == self.found

    def __str__(self) -> str:
        """One line; both digests where they differ."""
        if self.holds:
            return f"ok        {self.artifact}  {self.recorded[:16]}"
        return f"MISMATCH  {self.artifact}  recorded {self.recorded}, found {self.found or 'nothing'}"


def verify_statements() -> Iterator[Check]:
    """The workspace's statements are as dvc.lock has them, by MD5: to be known before one of them is believed.

    One that dvc.lock does not name was left by an iteration that params.yaml has no more.
    """
    for path, recorded in sorted(Snapshot(WORKSPACE).hashes.items()):
        if path.startswith(f"{FOLDER}/") and Path(path).is_file():
            yield Check(path, recorded, file_md5(Path(path)))


def verify_checkpoint(checkpoint: Checkpoint) -> Iterator[Check]:
    """Compute every digest along the chain anew: of the statements, of what they tell of, and of what ties them."""
    snapshot = checkpoint.snapshot
    last = 0 if checkpoint.iteration == "base" else int(checkpoint.iteration)
    stages = ["base_model", "ingest", "dedupe"]
    stages += [f"{name}@{key}" for key in snapshot.iterations if int(key) <= last for name in LINKED]
    for stage in stages:
        yield from _verify_statement(snapshot, stage)
    for stage in stages:
        for subject in snapshot.statements[stage]["subject"]:
            yield _verify_artifact(snapshot, subject["name"], digest_in(subject) or "")
        yield from _verify_links(snapshot, stage)


def _verify_statement(snapshot: Snapshot, stage: str) -> Iterator[Check]:
    """A statement is as dvc.lock has it, by MD5."""
    path = f"{FOLDER}/{stage}.json"
    text = snapshot.statement_texts.get(path)
    md5 = None if text is None else text_md5(text.encode())
    yield Check(path, snapshot.hashes.get(path, "nothing in dvc.lock"), md5)


def _verify_artifact(snapshot: Snapshot, path: str, recorded: str) -> Check:
    if snapshot.ref != WORKSPACE and snapshot.has(path):  # a small file that git holds
        return Check(path, recorded, hashlib.sha256(snapshot.read(path).encode()).hexdigest())
    file = snapshot.find(path)
    return Check(path, recorded, digest_of(file) if file else None)


def _verify_links(snapshot: Snapshot, stage: str) -> Iterator[Check]:
    name, _, key = stage.partition("@")
    parent = "base" if key in ("", "1") else str(int(key) - 1)
    read = {
        dependency["name"]: digest_in(dependency)
        for dependency in build_definition(snapshot, stage)["resolvedDependencies"]
    }
    for pattern in LINKED.get(name, ()):
        path = pattern.format(key=key, parent=parent)
        yield Check(f"{path} as {stage} read it", snapshot.recorded_digest(path) or "nothing", read.get(path))
