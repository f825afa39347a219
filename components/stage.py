"""What every stage's command shares: quiet libraries, death with its parent, one-line errors, and how long it took.

    with stage("score", iteration="2"):
        ...

Exit codes: 2 for a mistake that the user can mend (UserError), 75 for something unreachable that may answer later.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components import tables
from components.errors import Unreachable, UserError
from components.scratch import seconds_file

SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "fish", "busybox")
BAD_INPUT, TRY_LATER = 2, 75  # exit codes; 75 is EX_TEMPFAIL of sysexits.h

QUIET = {
    # torch's threads spin against any other load otherwise: 5.7 s instead of 0.4 s for one small forward pass
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "true",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 0.9 GB less, no processes left over
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def quiet_environment() -> None:
    """Defaults for libraries that are chatty or phone home; what the user has set stays. Call before importing them."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def die_with_parent() -> None:
    """Make this process end with SIGKILL as soon as its parent has gone (Linux; elsewhere nothing happens).

    DVC killed with SIGKILL leaves its stage running, and a rerun then mixes with it in the same files. DVC starts a
    stage through `sh -c`, and not every shell gives its place to the command: the one that counts is behind the shell.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    behind = _parent_behind_shell(parent)
    if behind not in (0, parent):
        descriptor = os.pidfd_open(behind)
        threading.Thread(target=die_after, args=(descriptor,), daemon=True, name="die-with-parent").start()
    if os.getppid() != parent or _parent_behind_shell(parent) != behind:  # it went before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def die_after(process_descriptor: int) -> None:
    select.select([process_descriptor], [], [])  # readable when the process has ended
    os.kill(os.getpid(), signal.SIGKILL)


def _parent_behind_shell(pid: int) -> int:
    """`pid`, or the parent of the `sh -c ...` that `pid` is."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"-c" in command[1:4] and Path(os.fsdecode(command[0])).name in SHELLS:
            # the name in parentheses may hold anything: count from the last one
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has gone: the check at the end of die_with_parent sees it
    return pid


def collect_rarely() -> None:
    """Let Python look for garbage less often, and not at the end. Call before the large imports.

    PyTorch and transformers make a million objects that stay, which are looked through again and again while they are
    imported, and once more at exit: a process that imports them takes 4.5 instead of 6 s with this.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)


def reuse_freed_memory() -> None:
    """Let the C library keep what is freed (glibc; elsewhere nothing happens). Call before a model is loaded.

    It gives every large block back to the system at once, and its heap's end as soon as that is free; both have to be
    cleared anew for the next tensor: a training step of 135 million parameters on 2 cores takes 6.0 instead of 7.5 s
    without that.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    trim_threshold, most_mapped_blocks = -1, -4  # names of malloc.h
    library.mallopt(most_mapped_blocks, 0)
    never = -1
    library.mallopt(trim_threshold, never)


class Stopwatch:
    """Adds up the seconds of the blocks that it is entered for."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._began


def stage_name(name: str, key: str | None = None) -> str:
    """DVC's name of a stage: `dedupe`, `score@2`."""
    return f"{name}@{key}" if key else name


@contextmanager
def stage(name: str, key: str | None = None, *, hub: bool = False) -> Iterator[Stopwatch]:
    """Run a stage's work. `hub`: the stage may ask the Hugging Face hub; no other stage ever does.

    The stopwatch that it gives is for the model's arithmetic: forward and backward passes and optimizer steps.
    """
    from components.provenance import write_statement

    die_with_parent()
    collect_rarely()
    quiet_environment()
    if not hub:
        os.environ["HF_HUB_OFFLINE"] = "1"
    started, arithmetic = time.monotonic(), Stopwatch()
    done = seconds_file(stage_name(name, key))
    done.unlink(missing_ok=True)
    try:
        yield arithmetic
        write_statement(stage_name(name, key))
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(TRY_LATER if isinstance(error, Unreachable) else BAD_INPUT)
    seconds = {"seconds": time.monotonic() - started, "arithmetic": arithmetic.seconds}
    tables.write_json(done, {name: round(value, 3) for name, value in seconds.items()})
