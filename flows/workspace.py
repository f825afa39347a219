"""The project folder of a run: what must exist before anything starts, and a lock that allows one run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.core.errors import Unreachable, UserError
from components.core.lock import LockedError, exclusive_lock
from components.core.params import read_params
from components.core.paths import PARAMS, PIPELINE, SCRATCH
from components.core.settings.pipeline import Settings
from components.data_sources.file_manifest import check_source
from components.ingest import has_record, without_example
from components.provenance.pipeline import output_places, params_read
from components.training.deepspeed import CONFIGS, check_precision

RUN_LOCK = SCRATCH / "lock"


class WorkspaceBusyError(Exception):
    """Another run is at work in this folder."""


@contextmanager
def workspace_lock() -> Iterator[None]:
    """Hold the folder's lock until the block or the process ends. Raises WorkspaceBusyError, which names its holder."""
    try:
        with exclusive_lock(RUN_LOCK):
            yield
    except LockedError as holder:
        raise WorkspaceBusyError(f"another run is at work in this folder (process {holder})") from None


@contextmanager
def claim_workspace() -> Iterator[None]:
    """workspace_lock for a command. Raises Unreachable when a run is at work in this folder."""
    try:
        with workspace_lock():
            yield
    except WorkspaceBusyError as busy:
        raise Unreachable(f"{busy}; try again when it has ended") from None


def check_workspace(settings: Settings) -> None:
    """Raises UserError, one line per mistake, for what would otherwise fail in the middle of a run."""
    check_repository()
    mistakes = [
        *_wrong_sources(settings),
        *_empty_targets(settings),
        *_missing_models(settings),
        *_unknown_config(settings),
        *_missing_keys(),
    ]
    if mistakes:
        raise UserError(*mistakes)
    check_precision(settings.finetune.deepspeed, settings.finetune.dtype)


def check_repository() -> None:
    """Raises UserError where the current folder is no project with DVC and git."""
    if not PIPELINE.exists():
        raise UserError(f"{PIPELINE}: not found; run in the project's folder")
    if not Path(".dvc").exists():
        raise UserError(".dvc: not found; make it a DVC repository: dvc init")
    if not any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents)):
        raise UserError(".git: not found; DVC needs a git repository: git init")


def _wrong_sources(settings: Settings) -> Iterator[str]:
    outputs = output_places()
    for name, source in settings.ingest.files.items():
        yield from check_source(name, source, outputs)


def _empty_targets(settings: Settings) -> Iterator[str]:
    """A target without an example; a dataset is read by `ingest` alone, which may have to ask the hub for it."""
    for name, source in settings.ingest.files.items():
        if source.target and not check_source(name, source, ()) and not has_record(name, source, settings.ingest):
            yield without_example(name, source)


def _missing_models(settings: Settings) -> Iterator[str]:
    for key, model in (("base_model", settings.base_model), ("proxy_model", settings.proxy_model)):
        if model is not None and model.kind in ("folder", "gguf") and not Path(model.path).exists():
            yield f"{PARAMS}: {key}.path: {model.path}: no such file or folder"


def _missing_keys() -> Iterator[str]:
    """DVC refuses a key that a stage depends on and that the file leaves to its default, in words of its own."""
    params = read_params()
    for key in params_read():
        value: Any = params
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                yield f"{PARAMS}: {key}: missing; a stage depends on it: write it with its default (docs/parameters.md)"
                break
            value = value[part]


def _unknown_config(settings: Settings) -> Iterator[str]:
    config = CONFIGS / f"{settings.finetune.deepspeed}.json"
    if not config.is_file():
        known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.json")))
        yield f"{PARAMS}: finetune.deepspeed: no {config}; there are: {known}"
