"""The frame of a stage's command: quiet libraries, death with its parent, one-line errors, and how long it took.

with stage("score", "2") as running, statement_of(running.name):
    ...
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from components.core.errors import StageBusyError, UserError, exit_on_user_error, first_line
from components.core.experiment import check_experiment
from components.core.files import is_full_disk, write_json
from components.core.lock import LockedError, exclusive_lock
from components.core.paths import lock_file, seconds_file
from components.core.process import die_with_parent, quiet_environment, relax_gc


class Stopwatch:
    """Adds up the seconds of the blocks that it is entered for."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._started


@dataclass(frozen=True, slots=True)
class RunningStage:
    """The stage that this process runs."""

    name: str
    """DVC's name: `dedupe`, `score@2`."""
    arithmetic: Stopwatch = field(default_factory=Stopwatch)
    """To be entered for forward and backward passes and optimizer steps."""


def stage_name(name: str, key: str | None = None) -> str:
    """DVC's name of a stage: `dedupe`, `score@2`."""
    return f"{name}@{key}" if key else name


@contextmanager
def stage(name: str, key: str | None = None, *, hub: bool = False) -> Iterator[RunningStage]:
    """Run the block as a stage. `hub`: it may ask the Hugging Face hub; no other stage ever does."""
    die_with_parent()
    relax_gc()
    quiet_environment()
    if not hub:
        os.environ["HF_HUB_OFFLINE"] = "1"
    running, started = RunningStage(stage_name(name, key)), time.monotonic()
    timing = seconds_file(running.name)
    with exit_on_user_error(), _explain_full_disk(running.name), _alone(running.name):
        check_experiment()
        timing.unlink(missing_ok=True)
        yield running
    seconds = {"seconds": time.monotonic() - started, "arithmetic": running.arithmetic.seconds}
    write_json(timing, {name: round(value, 3) for name, value in seconds.items()})


@contextmanager
def _explain_full_disk(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        free = shutil.disk_usage(".").free >> 20
        raise UserError(
            f"{name}: a file could not be written: {first_line(error)} ({free} MiB are free here); "
            "make room and run again"
        ) from error


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Hold the stage's lock while this process lives. Raises StageBusyError when another process runs the stage."""
    try:
        with exclusive_lock(lock_file(name)):
            yield
    except LockedError as holder:
        raise StageBusyError(
            f"{name}: another process is running this stage here (process {holder}); run again when it has ended"
        ) from None
