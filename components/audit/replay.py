"""Replays an iteration: runs its stages again from their recorded inputs, in a temporary folder, and compares digests.

Where the trainer state that it continued from was pruned, the iterations that make it are trained again first.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from components.audit.check import Check, compare_digests
from components.audit.measure import measure
from components.audit.snapshots import WORKSPACE, Snapshot
from components.core.errors import UserError
from components.core.paths import PARAMS, SCRATCH
from components.provenance.recorded import RecordedStage
from components.provenance.statements import CODE
from components.training.state import STATES, locate_trainer_state

STAGES = ("score", "select", "finetune")


def replay_iteration(snapshot: Snapshot, iteration: str) -> Iterator[Check]:
    """Run the iteration's stages again with the snapshot's code and parameters; yields the checks of their outputs.

    Raises UserError when an input is lost, or when a stage fails.
    """
    if iteration not in snapshot.iterations:
        raise UserError(f"--replay {iteration}: the iterations are {', '.join(snapshot.iterations)}")
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH, prefix="replay-") as temporary:
        folder = Path(temporary).resolve()
        _copy_code(snapshot, folder)
        first = int(iteration)
        while first > 1 and (state := _trainer_state(snapshot, first - 1)) is None:
            first -= 1
        if first > 1 and state and state.is_relative_to(STATES):
            shutil.copytree(state, folder / state)  # a copy: finetune removes states that it no longer needs
        for earlier in range(first, int(iteration)):
            yield from _replay_stage(snapshot, f"finetune@{earlier}", folder)
        for name in STAGES:
            yield from _replay_stage(snapshot, f"{name}@{iteration}", folder)


def _trainer_state(snapshot: Snapshot, iteration: int) -> Path | None:
    """The trainer state that an iteration left; None when it was pruned or is lost."""
    state = snapshot.find(f"state/{iteration}")
    return locate_trainer_state(state) if state else None


def _copy_code(snapshot: Snapshot, folder: Path) -> None:
    """Put the snapshot's code and parameters into the folder."""
    names = [*CODE, PARAMS.as_posix()]
    if snapshot.ref != WORKSPACE:
        archive = subprocess.run(["git", "archive", snapshot.ref, *names], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
        return
    for name in names:
        if Path(name).is_dir():
            shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif Path(name).is_file():
            shutil.copyfile(name, folder / name)


def _replay_stage(snapshot: Snapshot, name: str, folder: Path) -> Iterator[Check]:
    stage = snapshot.stage(name)
    _link_inputs(snapshot, stage, folder)
    command = [sys.executable, *shlex.split(stage.command)[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{name}: failed in the replay: {last}")
    for path, recorded in stage.outputs.items():
        yield from compare_digests(f"{path} made again", recorded, measure(folder / path))


def _link_inputs(snapshot: Snapshot, stage: RecordedStage, folder: Path) -> None:
    """Link what the stage read, with its recorded bytes, unless the folder has it from the code or an earlier stage."""
    for name, recorded in stage.inputs.items():
        path = folder / name
        if path.exists():
            continue
        source = snapshot.find(name)
        found = measure(source) if source else None
        if source is None or found is None or found.digest != recorded.digest:
            raise UserError(f"{name}: not as {stage.name} read it: neither here, nor in DVC's cache, nor on its remote")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source.resolve())
