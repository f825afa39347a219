"""What an iteration's training continues from: the trainer state of its parent.

`state/N/progress.json` is versioned: the position in the schedule, and the digest of the trainer state. The trainer
state itself (optimizer and random state, three times the model's size) is kept in `.iterit/states/DIGEST`, for the
newest iteration only; with `finetune.keep_states: all` it is beside progress.json, and versioned as well.
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
    """The position in the training: optimizer steps so far, and the steps per iteration that the schedule assumes."""

    step: int
    steps_per_iteration: int | None
    processes: int | None = None
    deepspeed: str | None = None
    trainer_state: str | None = None
    """folder_digest of the trainer state; None before the first step."""


def read_progress(state: Path) -> Progress:
    """Raises UserError when there is none."""
    return Progress(**read_json(state / PROGRESS))


def locate_trainer_state(state: Path) -> Path | None:
    """The folder of the trainer state, beside progress.json or in `.iterit/states`; None when it was pruned."""
    digest = read_progress(state).trainer_state
    assert digest, "there is none before the first step"
    if any(file.name != PROGRESS for file in state.iterdir()):
        return state
    folder = STATES / digest
    return folder if folder.is_dir() else None


def require_trainer_state(state: Path) -> Path:
    """The folder that Trainer resumes from. Raises UserError when it was pruned, or is not what was written."""
    folder = locate_trainer_state(state)
    if folder is None:
        raise UserError(
            f"{state}: its trainer state is not on this machine (finetune.keep_states: newest keeps that of the newest "
            f"iteration); `dvc repro -f finetune@{state.name}` makes it again, the same to the last bit"
        )
    for file in sorted(folder.rglob("*.pt*")):
        if not zipfile.is_zipfile(file):  # its directory is at its end: a truncated file has none
            raise corrupt(state, f"{file.name} is cut off")
    if folder != state and cached_digest(folder) != folder.name:  # DVC checks the others
        raise corrupt(state, f"{folder}: its files are not those that were written")
    return folder


def corrupt(state: Path, what: str) -> UserError:
    """The error for a trainer state that cannot be read."""
    return UserError(
        f"{state}: cannot be resumed: {what}; `dvc repro -f finetune@{state.name}` trains it again "
        f"(after `dvc checkout {state}`, if that does not bring it back)"
    )


def store_trainer_state(trained: Path, state: Path, progress: Progress, *, keep_all: bool) -> None:
    """Write the folder `state` for the next iteration; the trainer state in `trained` stays as it is.

    Its files go beside progress.json with `keep_all`, otherwise to `.iterit/states`.
    """
    digest = cached_digest(trained)
    shutil.rmtree(state, ignore_errors=True)
    if keep_all:
        publish_folder(trained, state)
    else:
        publish_folder(trained, STATES / digest)
    write_json(state / PROGRESS, asdict(replace(progress, trainer_state=digest)))


def prune_trainer_states(needed: Path) -> None:
    """Remove every stored trainer state but that of the folder `needed`.

    Called when an iteration begins, with its parent's state: DVC has recorded that one by then, so a stage that is
    started again never misses its own parent. And once more at the end of a run, with the last.
    """
    digest = read_progress(needed).trainer_state
    for folder in STATES.glob("*"):
        if folder.name != digest:
            shutil.rmtree(folder)
