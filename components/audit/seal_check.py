"""Compares a checkpoint's chain with the commit that sealed it: what was forged together in a workspace, git still has.

A seal is a commit that `iterit run` made of its results, or that carries its tag. Of several, the newest with the
checkpoint counts. A stage that ran again since, with other inputs, may have other outputs; with the same inputs it may
not, because stages are deterministic. So the newest seal also judges a checkpoint that no seal has.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.audit.check import Check, compare_digests, differences
from components.audit.entries import Definition, chain_stages
from components.audit.find import Checkpoint
from components.audit.snapshots import WORKSPACE, Snapshot, git, in_git
from components.core.files import flatten
from components.core.paths import LOCK, PIPELINE
from components.provenance.pipeline import FOLDER
from components.provenance.recorded import Digests, RecordedStage
from components.provenance.statements import BUNDLE, bundle_text

SUBJECT = "Retrain: "  # of a commit that `iterit run` makes
SHOWN = 12  # hex digits of a commit
NOTHING = Digests("nothing", None)


@dataclass(frozen=True, slots=True)
class Seal:
    """A commit that sealed a run, and its tag, if it has one."""

    snapshot: Snapshot
    tag: str | None
    has_checkpoint: bool
    """False for the newest seal, where no seal has the checkpoint."""

    def __str__(self) -> str:
        return f"{self.snapshot.ref[:SHOWN]}{f' (tag {self.tag})' if self.tag else ''}"


def find_seal(digest: str) -> Seal | None:
    """The newest seal with the checkpoint; else the newest of all; None where git has none."""
    newest = None
    for commit, tag in _seals():
        snapshot = Snapshot(commit)
        if not (snapshot.has(LOCK.as_posix()) and snapshot.has(BUNDLE)):
            continue  # of another project in this repository
        newest = newest or Seal(snapshot, tag, has_checkpoint=False)
        if digest in snapshot.read(BUNDLE):
            recorded = {snapshot.recorded_digest(f"models/{key}") for key in ("base", *snapshot.iterations)}
            if digest in recorded:
                return Seal(snapshot, tag, has_checkpoint=True)
    return newest


def _seals() -> Iterator[tuple[str, str | None]]:
    """Commit and tag of each seal, newest first."""
    form = "--format=%(*objectname)%09%(refname:short)"
    try:
        listed = git("for-each-ref", "--sort=-creatordate", form, "refs/tags/iterit").splitlines()
        log = git("log", "--all", "--date-order", "--format=%H%x09%s").splitlines()
    except subprocess.CalledProcessError:  # no repository, or no commit
        return
    tags: dict[str, str] = dict(line.split("\t") for line in reversed(listed))
    for commit, _, subject in (line.partition("\t") for line in log):
        if commit in tags or subject.startswith(SUBJECT):
            yield commit, tags.get(commit)


def verify_seal(
    checkpoint: Checkpoint, stages: Sequence[str], definitions: Mapping[str, Definition], seal: Seal | None
) -> Iterator[Check]:
    """Compare the stages with the seal; in the workspace, also the bundle and dvc.yaml with git."""
    snapshot = checkpoint.snapshot
    if snapshot.ref == WORKSPACE:
        yield from _verify_bundle(seal)
        yield from _verify_pipeline(snapshot, stages, seal)
    if seal is None:
        return
    if seal.tag:
        yield from _verify_tag(seal)
    if seal.snapshot.ref == snapshot.ref:
        return
    checks = [check for name in stages if name in seal.snapshot.stages for check in _verify_stage(snapshot, seal, name)]
    yield from sorted(checks, key=lambda check: check.may_change)  # mismatches first
    if seal.has_checkpoint:
        sealed = chain_stages(replace(checkpoint, snapshot=seal.snapshot), {})
        for name in sealed:
            if name in definitions and name not in snapshot.lock:
                yield Check(f"{LOCK}: {name} as sealed in {seal}", "an entry", None)


def describe_seal(checkpoint: Checkpoint, stages: Sequence[str], seal: Seal | None) -> str:
    """What verify compared with, in words."""
    here = "the workspace" if checkpoint.snapshot.ref == WORKSPACE else f"commit {checkpoint.snapshot.ref[:SHOWN]}"
    if seal is None:
        return f"{here} alone; git has no sealed run"
    if seal.snapshot.ref == checkpoint.snapshot.ref:
        return f"the sealed commit {seal} itself"
    others = [name for name in stages if not _is_sealed(checkpoint.snapshot, seal, name)]
    if not seal.has_checkpoint:
        return f"{here} alone; no sealed commit has this checkpoint, the newest is {seal}"
    if others:
        return f"the sealed commit {seal}, and {here} alone for what ran since: {', '.join(others)}"
    return f"the sealed commit {seal}"


def _is_sealed(snapshot: Snapshot, seal: Seal, name: str) -> bool:
    stages = seal.snapshot.stages
    return name in stages and not any(_changed_inputs(stages[name], snapshot.stage(name)))


def _verify_stage(snapshot: Snapshot, seal: Seal, name: str) -> Iterator[Check]:
    """A stage with the seal's inputs has its outputs; one with the seal's statement has its entry in dvc.lock."""
    sealed, stage = seal.snapshot.stages[name], snapshot.stage(name)
    changed = list(_changed_inputs(sealed, stage))
    if changed:
        if seal.has_checkpoint:
            for check in changed:
                artifact = f"{name} since it was sealed in {seal}: {check.artifact}"
                yield Check(artifact, check.recorded, check.computed, may_change=True)
        return
    for path, recorded in sealed.outputs.items():
        artifact = f"{path} as sealed in {seal}, from the same inputs"
        yield from compare_digests(artifact, recorded, stage.outputs.get(path, NOTHING))
    statement = f"{FOLDER}/{name}.json"
    if snapshot.hashes.get(statement) == seal.snapshot.hashes.get(statement):
        before, now = (flatten(one.lock[name].files) for one in (seal.snapshot, snapshot))
        yield from differences(f"{LOCK}: {name} as sealed in {seal}: ", before, now)


def _changed_inputs(sealed: RecordedStage, stage: RecordedStage) -> Iterator[Check]:
    yield from differences("", _inputs(sealed), _inputs(stage))


def _inputs(stage: RecordedStage) -> Mapping[str, Any]:
    return {
        "command": stage.command,
        **{f"params {key}": value for key, value in flatten(stage.params).items()},
        **{path: digests.digest for path, digests in stage.inputs.items()},
        "packages": sorted(stage.packages),
    }


def _verify_bundle(seal: Seal | None) -> Iterator[Check]:
    """The bundle is as git has it, or holds the statements of the workspace; after `dvc repro` it is of an earlier run.

    It is compared with HEAD and with the seal.
    """
    here = Path(BUNDLE).read_bytes() if Path(BUNDLE).is_file() else None
    known = [content for ref in _refs(seal) if (content := _content(ref, BUNDLE)) is not None]
    if here is None and not known:
        return
    if here is None or here not in (*known, bundle_text().encode()):
        expected = known[0] if known else bundle_text().encode()
        yield Check(BUNDLE, _sha256(expected), None if here is None else _sha256(here))
    else:
        yield Check(BUNDLE, _sha256(here), _sha256(here))


def _verify_pipeline(snapshot: Snapshot, stages: Sequence[str], seal: Seal | None) -> Iterator[Check]:
    """dvc.yaml is as git has it, where the statements say that the code was."""
    recorded = [code for name in stages if (code := snapshot.stage(name).code)]
    known = [content for ref in _refs(seal) if (content := _content(ref, PIPELINE.as_posix())) is not None]
    if known and recorded and all(code.clean for code in recorded):
        here = PIPELINE.read_bytes()
        expected = here if here in known else known[0]
        yield Check(f"{PIPELINE} as git has it", _sha256(expected), _sha256(here))


def _verify_tag(seal: Seal) -> Iterator[Check]:
    """The tag's message names the dvc.lock that its commit has: a tag that was moved to another commit does not."""
    try:
        message = json.loads(git("tag", "--list", "--format=%(contents)", str(seal.tag)))
        recorded = str(message["dvc_lock"])
    except (KeyError, TypeError, json.JSONDecodeError):
        return
    lock = seal.snapshot.content(LOCK.as_posix())
    yield Check(f"{LOCK} of tag {seal.tag}", recorded, _sha256(lock))


def _refs(seal: Seal | None) -> list[str]:
    return ["HEAD", seal.snapshot.ref] if seal else ["HEAD"]


def _content(ref: str, path: str) -> bytes | None:
    """A file of a commit; None where git does not have it."""
    done = subprocess.run(["git", "show", in_git(ref, path)], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
