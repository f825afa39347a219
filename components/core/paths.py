"""Paths that more than one module needs. Those of a stage's inputs and outputs are written in dvc.yaml only."""

from __future__ import annotations

import os
from pathlib import Path

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")

# never versioned: locks, timings, downloads, what a killed stage can resume from
SCRATCH = Path(".iterit")
SECONDS = SCRATCH / "seconds"  # how long each stage took when it last ran here
REGISTERED = SCRATCH / "registered.json"  # the version that `register` made or found, and what the gate decided


def project_folder() -> Path:
    """The project: the current folder, or the project whose experiment this folder is.

    DVC runs queued experiments in a temporary folder, which vanishes with its files, and names the project in DVC_ROOT.
    """
    root = Path(os.environ.get("DVC_ROOT", "."))
    return Path() if root.resolve() == Path.cwd() else root


def seconds_file(stage: str) -> Path:
    """Where a stage notes down how long it took."""
    return SECONDS / f"{stage}.json"


def throughput_file(stage: str) -> Path:
    """Where a stage notes down how fast its arithmetic was."""
    return SCRATCH / "throughput" / f"{stage}.json"


def lock_file(stage: str) -> Path:
    """The file that a stage's process holds a lock on while it runs."""
    return SCRATCH / "locks" / f"{stage}.lock"


def scratch_folder(stage: str) -> Path:
    """The folder for what a stage needs while it runs."""
    return SCRATCH / "tmp" / stage
