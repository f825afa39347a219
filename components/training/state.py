"""What the training of an iteration continues from: the trainer state of its parent.

`state/N/progress.json` holds the position in the schedule and the digest of the trainer state, and is versioned. The
trainer state itself (optimizer and random state, three times the size of the model) is kept in `.iterit/states/DIGEST`,
that of the newest iteration only. With `finetune.keep_states: all` it is beside progress.json, and versioned as well.
"""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from components.core.errors import UserError
from components.core.files import publish_folder, read_json, write_json
from components.core.paths import SCRATCH
from components.provenance.digests import cached_digest

PROGRESS = "progress.json"
STATES = SCRATCH / "states"


@dataclass(frozen=True, slots=True)
class Progress:
    """The position in the training, and what its trainer state was written with."""

    step: int
    """Optimizer steps so far."""
    steps_per_iteration: int | None
    """Of the schedule, fixed by the first iteration; None before the first step, as are the following."""
    processes: int | None = None
    deepspeed: str | None = None
    trainer_state: str | None = None
    """folder_digest of the trainer state."""


def read_progress(state: Path) -> Progress:
    """The progress in a folder `state/N`. Raises UserError when there is none."""
    return Progress(**read_json(state / PROGRESS))


def locate_trainer_state(state: Path) -> Path | None:
    """The folder of the trainer state, beside progress.json or in `.iterit/states`; None when it was pruned."""
    digest = read_progress(state).trainer_state
    assert digest, "there is no trainer state before the first step"
    if any(file.name != PROGRESS for file in state.iterdir()):
        return state
    folder = STATES / digest
    return folder if folder.is_dir() else None


def require_trainer_state(state: Path) -> Path:
    """The folder that Trainer resumes from. Raises UserError when it was pruned or damaged."""
    folder = locate_trainer_state(state)
    if folder is None:
        raise UserError(
            f"{state}: its trainer state is not on this machine (finetune.keep_states: newest keeps that of the newest "
            f"iteration); `dvc repro -f finetune@{state.name}` makes it again, with the same bytes"
        )
    for file in sorted(folder.rglob("*.pt*")):
        if not zipfile.is_zipfile(file):  # the directory is at the end, so a truncated file has none
            raise corrupt(state, f"{file.name} is truncated")
    if folder != state and cached_digest(folder) != folder.name:  # DVC checks the others
        raise corrupt(state, f"{folder}: its files are not those that were written")
    return folder


def corrupt(state: Path, problem: str) -> UserError:
    """The error for a trainer state that cannot be read."""
    return UserError(
        f"{state}: cannot be resumed: {problem}; `dvc repro -f finetune@{state.name}` trains it again "
        f"(if `dvc checkout {state}` does not restore it)"
    )


def store_trainer_state(trained: Path, state: Path, progress: Progress, *, keep_all: bool) -> None:
    """Write the folder `state` for the next iteration, and publish the trainer state in the folder `trained`.

    That goes beside progress.json with `keep_all`, otherwise to `.iterit/states`; `trained` stays as it is.
    """
    digest = cached_digest(trained)
    shutil.rmtree(state, ignore_errors=True)
    if keep_all:
        publish_folder(trained, state)
    else:
        publish_folder(trained, STATES / digest)
    write_json(state / PROGRESS, asdict(replace(progress, trainer_state=digest)))


def prune_trainer_states(needed: Path) -> None:
    """Remove every trainer state in `.iterit/states` but that of the folder `needed`.

    Called with the parent's state when an iteration begins, and with the last one at the end of a run. DVC has recorded
    the state by then, so a stage that is started again always finds that of its parent.
    """
    digest = read_progress(needed).trainer_state
    for folder in STATES.glob("*"):
        if folder.name != digest:
            shutil.rmtree(folder)
