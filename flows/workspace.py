"""The folder that a run works in: what must be there before anything starts, and that one run at a time is in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.core.errors import UserError
from components.core.paths import PARAMS, SCRATCH
from components.core.settings.pipeline import Settings
from components.training.deepspeed import CONFIGS, check_precision

LOCK = SCRATCH / "lock"


class WorkspaceBusyError(Exception):
    """Another run is at work in this folder."""


@contextmanager
def workspace_lock() -> Iterator[None]:
    """Hold the folder for one run, however it ends; raises WorkspaceBusyError with the other's process id."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise WorkspaceBusyError(f"another run is at work in this folder (process {file.read().strip()})") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def check_workspace(settings: Settings) -> None:
    """Raises UserError for what would otherwise fail in the middle of a run."""
    for name, why in (("dvc.yaml", "run in the project's folder"), (".dvc", "make it a DVC repository: dvc init")):
        if not Path(name).exists():
            raise UserError(f"{name}: not found; {why}")
    if not any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents)):
        raise UserError(".git: not found; DVC needs a git repository: git init")
    missing = [
        f"{PARAMS}: ingest.files.{name}.path: {source.path}: no such file or folder"
        for name, source in settings.ingest.files.items()
        if not Path(source.path).exists()
    ]
    for key, model in (("base_model", settings.base_model), ("proxy_model", settings.proxy_model)):
        if model is not None and model.kind in ("folder", "gguf") and not Path(model.path).exists():
            missing.append(f"{PARAMS}: {key}.path: {model.path}: no such file or folder")
    config = CONFIGS / f"{settings.finetune.deepspeed}.json"
    if not config.is_file():
        known = ", ".join(sorted(path.stem for path in config.parent.glob("*.json")))
        missing.append(f"{PARAMS}: finetune.deepspeed: no {config}; there are: {known}")
    if missing:
        raise UserError(*missing)
    check_precision(settings.finetune.deepspeed, settings.finetune.dtype)
