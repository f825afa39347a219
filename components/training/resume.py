"""What a killed training resumes from: the scratch folder of a finetune stage, `.iterit/tmp/finetune@N`.

    identity.json               digests and settings of the training; with different ones it starts from the beginning
    steps.jsonl                 one line per optimizer step
    checkpoint-S/complete.json  Trainer's checkpoint after step S is complete, because this file is written last

A folder loses its mark (identity.json, complete.json) before it is removed, so a kill leaves none that only looks
complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.core.errors import UserError
from components.core.files import is_full_disk, read_json, write_json

IDENTITY, STEPS, COMPLETE = "identity.json", "steps.jsonl", "complete.json"


@dataclass(frozen=True, slots=True)
class Step:
    """An optimizer step and its measurements."""

    step: int
    """Number across all iterations, from 1."""
    loss: float
    """Nats per token, averaged as finetune.loss says."""
    learning_rate: float
    gradient_norm: float
    """Before clipping; nan where DeepSpeed does not report it."""
    tokens_per_second: float
    seconds: float


def prepare_scratch(scratch: Path, identity: Mapping[str, Any]) -> Path | None:
    """The checkpoint that an earlier start with the same `identity` left, or None.

    Everything else is removed, but for the identity and the lines of the steps up to the checkpoint.
    """
    file = scratch / IDENTITY
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != identity:
        remove_scratch(scratch)
        write_json(file, identity)
        return None
    checkpoint = last_checkpoint(scratch)
    for path in scratch.iterdir():
        if path not in (file, checkpoint, scratch / STEPS):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if checkpoint is None:
        (scratch / STEPS).unlink(missing_ok=True)
    else:
        lines = (scratch / STEPS).read_text(encoding="utf-8").splitlines(keepends=True)
        (scratch / STEPS).write_text("".join(lines[: steps_of(checkpoint)]), encoding="utf-8")
    return checkpoint


def remove_scratch(scratch: Path) -> None:
    """Remove the folder, its identity first: what a kill leaves of it is then not resumed from."""
    (scratch / IDENTITY).unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)


def last_checkpoint(scratch: Path) -> Path | None:
    """The complete checkpoint of the highest step; None where there is none."""
    complete = [mark.parent for mark in scratch.glob(f"checkpoint-*/{COMPLETE}")]
    return max(complete, key=lambda folder: int(folder.name.partition("-")[2]), default=None)


def steps_of(checkpoint: Path) -> int:
    """How many optimizer steps of this iteration were done before a complete checkpoint."""
    return int(read_json(checkpoint / COMPLETE)["steps"])


def mark_complete(checkpoint: Path, steps: int) -> None:
    """Mark a checkpoint as complete, after `steps` optimizer steps of this iteration, and remove the earlier ones."""
    write_json(checkpoint / COMPLETE, {"steps": steps})
    for folder in checkpoint.parent.glob("checkpoint-*"):
        if folder != checkpoint:
            (folder / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(folder)


def append_step(scratch: Path, step: Step) -> None:
    """Add a line, for MLflow while the training runs and for the stage that resumes it."""
    with (scratch / STEPS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(step)) + "\n")


def read_steps(scratch: Path) -> Sequence[Step]:
    """The steps so far, without a line that is still being written; empty where there is no file."""
    try:
        lines = (scratch / STEPS).read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [Step(**json.loads(line)) for line in lines if line.endswith("\n")]


@contextmanager
def explain_full_disk(scratch: Path) -> Iterator[None]:
    """Raise the libraries' errors for a full disk as a UserError of one line that says what to do."""
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        saved = last_checkpoint(scratch)
        outlook = f"it goes on after {saved.name}" if saved else "the parent's checkpoint is as it was"
        raise UserError(
            f"finetune: a checkpoint could not be written ({shutil.disk_usage(scratch).free >> 20} MiB are free); "
            f"make room and run again: {outlook}"
        ) from error
