"""Makes an iteration again from what was recorded as its inputs, in a folder of its own, and compares the results.

Where the trainer state that it went on from was pruned, the iterations that make it are trained again first.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from components.audit.snapshots import WORKSPACE, Snapshot
from components.audit.verify import Check
from components.core.errors import UserError
from components.core.paths import SCRATCH
from components.provenance.digests import digest_of
from components.provenance.statements import CODE, digest_in
from components.training.state import STATES, locate_trainer_state

STAGES = ("score", "select", "finetune")


def replay_iteration(snapshot: Snapshot, iteration: str) -> Iterator[Check]:
    """Run the iteration's stages again, with the code and parameters of the snapshot; one check an output.

    Raises UserError when an input is nowhere, or a stage fails.
    """
    if iteration not in snapshot.iterations:
        raise UserError(f"--replay {iteration}: there are iterations {', '.join(snapshot.iterations)}")
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH, prefix="replay-") as place:
        folder = Path(place).resolve()
        _place_code(snapshot, folder)
        first = int(iteration)
        while first > 1 and (state := _trainer_state(snapshot, first - 1)) is None:
            first -= 1
        if first > 1 and state and state.is_relative_to(STATES):
            shutil.copytree(state, folder / state)  # the stage takes it away when it does not need it any more
        for earlier in range(first, int(iteration)):
            yield from _replay_stage(snapshot, f"finetune@{earlier}", folder)
        for name in STAGES:
            yield from _replay_stage(snapshot, f"{name}@{iteration}", folder)


def _trainer_state(snapshot: Snapshot, iteration: int) -> Path | None:
    state = snapshot.find(f"state/{iteration}")
    return locate_trainer_state(state) if state else None


def _place_code(snapshot: Snapshot, folder: Path) -> None:
    names = [*CODE, "params.yaml"]
    if snapshot.ref != WORKSPACE:
        archive = subprocess.run(["git", "archive", snapshot.ref, *names], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
        return
    for name in names:
        if Path(name).is_dir():
            shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif Path(name).is_file():
            shutil.copyfile(name, folder / name)


def _replay_stage(snapshot: Snapshot, stage: str, folder: Path) -> Iterator[Check]:
    statement = snapshot.statements.get(stage)
    if statement is None:
        raise UserError(f"{stage}: no statement ({snapshot.ref})")
    definition = statement["predicate"]["buildDefinition"]
    for one in definition["resolvedDependencies"]:
        path = folder / one["name"]
        digest = digest_in(one)
        if digest is None or path.exists():
            continue
        source = snapshot.find(one["name"])
        if source is None or digest_of(source) != digest:
            raise UserError(f"{one['name']}: not as {stage} read it, here, in DVC's cache or on its remote")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source.resolve())
    command = [sys.executable, *shlex.split(definition["externalParameters"]["command"])[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        raise UserError(f"{stage} failed when it was run again: {last}")
    for subject in statement["subject"]:
        path = folder / subject["name"]
        found = digest_of(path) if path.exists() else None
        yield Check(f"{subject['name']} made again", digest_in(subject) or "", found)
