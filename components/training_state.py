"""What a training goes on from: the trainer state of the parent iteration, or what a killed stage had saved by then.

`state/N/progress.json` is versioned: the place in the schedule, and the digest of the trainer state. The trainer state
itself (optimizer, random state; three times the model) lies in `.iterit/states/DIGEST`, the newest only; with
`finetune.keep_states: all` it lies beside progress.json, and is versioned as well.

While a stage trains, `.iterit/tmp/finetune@N` has what it was begun with (begun.json), a line a step (steps.jsonl), and
the last checkpoint, which is whole as soon as it has complete.json.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components import tables
from components.digests import known_digest
from components.errors import UserError
from components.scratch import SCRATCH
from components.stage import stage_name

PROGRESS = "progress.json"
STATES = SCRATCH / "states"
BEGUN, STEPS, COMPLETE = "begun.json", "steps.jsonl", "complete.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the training is: optimizer steps so far, and the length of an iteration that the schedule counts with."""

    step: int
    steps_per_iteration: int | None
    processes: int | None = None
    deepspeed: str | None = None
    trainer_state: str | None = None
    """folder_digest of the trainer state; none before the first step."""


def read_progress(state: Path) -> Progress:
    return Progress(**tables.read_json(state / PROGRESS))


# --- between iterations -----------------------------------------------------------------------------------------------


def place_of_trainer_state(state: Path) -> Path | None:
    """Beside progress.json, or in the store for the newest; None when it was pruned."""
    digest = read_progress(state).trainer_state
    assert digest, "there is none before the first step"
    if any(file.name != PROGRESS for file in state.iterdir()):
        return state
    place = STATES / digest
    return place if place.is_dir() else None


def find_trainer_state(state: Path) -> Path:
    """The folder that Trainer resumes from. Raises UserError when it was pruned, or is not what was written."""
    place = place_of_trainer_state(state)
    if place is None:
        raise UserError(
            f"{state}: its trainer state is not on this machine (finetune.keep_states: newest keeps that of the newest "
            f"iteration); `dvc repro -f finetune@{state.name}` makes it again, the same to the last bit"
        )
    for file in sorted(place.rglob("*.pt*")):
        if not zipfile.is_zipfile(file):  # its directory is at its end: a cut file has none
            raise corrupt(state, f"{file.name} is cut off")
    if place != state and known_digest(place) != place.name:  # DVC looks after the others
        raise corrupt(state, f"{place}: its files are not those that were written")
    return place


def corrupt(state: Path, what: str) -> UserError:
    return UserError(
        f"{state}: cannot be resumed: {what}; `dvc repro -f finetune@{state.name}` trains it again "
        f"(after `dvc checkout {state}`, if that does not bring it back)"
    )


def keep_trainer_state(trained: Path, state: Path, progress: Progress, *, keep_all: bool) -> None:
    """Write `state` for the next iteration; `trained` is moved beside it, or into the store for the newest."""
    digest = known_digest(trained)
    if keep_all:
        trained.replace(state)
    else:
        place = STATES / digest
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        trained.replace(place)
        state.mkdir()
    written = {**asdict(progress), "trainer_state": digest}
    tables.write_json(state / PROGRESS, written)


def prune_trainer_states(needed: Path) -> None:
    """Take away every stored state but that of `needed`.

    Called when an iteration begins, with its parent's state: DVC has recorded that one by then, so that no stage which
    is started again can miss its own parent. And at the end, with the last.
    """
    digest = read_progress(needed).trainer_state
    for place in STATES.glob("*"):
        if place.name != digest:
            shutil.rmtree(place)


# --- within a stage ---------------------------------------------------------------------------------------------------


def begin(scratch: Path, identity: dict[str, Any]) -> Path | None:
    """Prepare `scratch`, and return the checkpoint to go on from: of an earlier start with the same `identity`."""
    begun = scratch / BEGUN
    if not begun.is_file() or json.loads(begun.read_text(encoding="utf-8")) != identity:
        shutil.rmtree(scratch, ignore_errors=True)
        tables.write_json(begun, identity)
        return None
    whole = last_checkpoint(scratch)
    for place in scratch.iterdir():
        if place not in (begun, whole, scratch / STEPS):
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    if whole is None:
        (scratch / STEPS).unlink(missing_ok=True)
    else:
        made = tables.read_json(whole / COMPLETE)["steps"]
        lines = (scratch / STEPS).read_text(encoding="utf-8").splitlines(keepends=True)
        (scratch / STEPS).write_text("".join(lines[:made]), encoding="utf-8")
    return whole


def last_checkpoint(scratch: Path) -> Path | None:
    whole = [marker.parent for marker in scratch.glob(f"checkpoint-*/{COMPLETE}")]
    return max(whole, key=lambda place: int(place.name.partition("-")[2]), default=None)


def complete(checkpoint: Path, steps: int) -> None:
    """Say that a checkpoint is whole, made after so many steps of this iteration; the ones before it go."""
    tables.write_json(checkpoint / COMPLETE, {"steps": steps})
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other)


def scratch_of(iteration: str) -> Path:
    """Where the stage of an iteration keeps what it needs while it trains."""
    return SCRATCH / "tmp" / stage_name("finetune", iteration)


def append_step(scratch: Path, step: dict[str, float]) -> None:
    """One line, for whoever watches, and for the stage that goes on after a kill."""
    with (scratch / STEPS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(step) + "\n")


def read_steps(scratch: Path) -> Sequence[dict[str, float]]:
    """The steps so far; a line that is being written is left out."""
    try:
        lines = (scratch / STEPS).read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]
