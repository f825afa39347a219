"""Verifies a checkpoint's chain: all that was recorded is compared with the files as they are, and with what git holds.

What is compared, in this order: statements, dvc.lock, dvc.yaml and params.yaml with each other (entries.py); the bytes
of every output and input with both records; the whole with the commit that sealed the checkpoint (seal_check.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from components.audit.check import Check, compare_digests, differences
from components.audit.entries import Definition, chain_stages, read_definitions, verify_entry
from components.audit.find import Checkpoint
from components.audit.measure import measure, measure_as_dvc, measure_bytes, strangers
from components.audit.seal_check import describe_seal, find_seal, verify_seal
from components.audit.snapshots import WORKSPACE, Snapshot
from components.core.paths import LOCK
from components.provenance.digests import CODE_FOLDERS
from components.provenance.lockfile import StageEntry
from components.provenance.recorded import Digests

DVC_FIELDS = ("hash", "md5", "size", "nfiles")


@dataclass(frozen=True, slots=True)
class Verification:
    """The checks of a checkpoint, made while they are read."""

    checks: Iterator[Check]
    compared_with: Callable[[], str]
    """To be called when every check holds."""


def verify_checkpoint(checkpoint: Checkpoint, defined: Mapping[str, Definition] | None = None) -> Verification:
    """Compare the records of every stage of the chain with each other, with every byte, and with the seal.

    `defined`: what read_definitions gave, if it was asked already; only a checkpoint of the workspace needs it.
    """
    definitions: Mapping[str, Definition] = {}
    if checkpoint.snapshot.ref == WORKSPACE:
        definitions = read_definitions() if defined is None else defined
    stages = chain_stages(checkpoint, definitions)
    seal = find_seal(checkpoint.digest)
    checks = chain(
        _verify_records(checkpoint.snapshot, stages, definitions), verify_seal(checkpoint, stages, definitions, seal)
    )
    return Verification(checks, lambda: describe_seal(checkpoint, stages, seal))


def _verify_records(
    snapshot: Snapshot, stages: Sequence[str], definitions: Mapping[str, Definition]
) -> Iterator[Check]:
    for stage in stages:
        yield from verify_entry(snapshot, stage, definitions.get(stage))
    for stage in stages:
        yield from _verify_outputs(snapshot, stage)
        yield from _verify_links(snapshot, stage)
    if snapshot.ref == WORKSPACE:
        for stage in stages:
            yield from _verify_inputs(snapshot, stage)


def _verify_outputs(snapshot: Snapshot, name: str) -> Iterator[Check]:
    """The bytes of a stage's outputs against its statement, and against dvc.lock."""
    entry = snapshot.lock.get(name, StageEntry({}, {}, {}))
    for path, recorded in snapshot.stage(name).outputs.items():
        computed, dvc = _measure(snapshot, path)
        yield from compare_digests(path, recorded, computed)
        if computed is not None:  # else its line is written already
            yield from _compare_with_lock(name, path, entry, dvc)
        if snapshot.ref == WORKSPACE:
            yield from (Check(stranger.as_posix(), "nothing", "no file") for stranger in strangers(Path(path)))
    statement = f"provenance/{name}.json"
    if snapshot.ref == WORKSPACE:
        yield from _compare_with_lock(name, statement, entry, measure_as_dvc(Path(statement)))


def _measure(snapshot: Snapshot, path: str) -> tuple[Digests | None, Mapping[str, Any]]:
    if snapshot.ref != WORKSPACE and snapshot.has(path):  # a small file that git holds
        return measure_bytes(snapshot.content(path))
    file = snapshot.find(path)
    return (measure(file), measure_as_dvc(file)) if file else (None, {})


def _compare_with_lock(name: str, path: str, entry: StageEntry, dvc: Mapping[str, Any]) -> Iterator[Check]:
    """What dvc.lock has of a file or folder against what DVC would write there now."""
    recorded = {field: value for field, value in entry.files.get(path, {}).items() if field in DVC_FIELDS}
    wrong = list(differences(f"{LOCK}: {name}: {path} ", recorded, dvc))
    if wrong or not dvc:
        yield from wrong
    else:
        yield Check(f"{path} in {LOCK}", str(dvc["md5"]), str(dvc["md5"]))


def _verify_links(snapshot: Snapshot, name: str) -> Iterator[Check]:
    """What a stage read against what an earlier stage wrote, by their statements."""
    for path, read in snapshot.stage(name).inputs.items():
        written = snapshot.recorded_digests(path)
        if written:
            yield from compare_digests(f"{path} as {name} read it", written, read)


def _verify_inputs(snapshot: Snapshot, name: str) -> Iterator[Check]:
    """The bytes of code, folders of outputs and sources, as they are in the workspace, against statement and dvc.lock.

    The files of a source are the user's: they may have changed since, and a clone may not have them.
    """
    entry = snapshot.lock.get(name, StageEntry({}, {}, {}))
    for path, recorded in snapshot.stage(name).inputs.items():
        computed = measure(Path(path))
        is_source = Path(path).parts[0] not in CODE_FOLDERS and not _holds_outputs(snapshot, path)
        if snapshot.recorded_digests(path) is None:  # outputs are compared already
            yield from compare_digests(f"{path} as {name} read it", recorded, computed, may_change=is_source)
        if not is_source or (computed and computed.digest == recorded.digest):
            yield from _compare_with_lock(name, path, entry, measure_as_dvc(Path(path)))


def _holds_outputs(snapshot: Snapshot, path: str) -> bool:
    return any(output == path or output.startswith(f"{path}/") for output in snapshot.hashes)
