"""The process that calls: quiet libraries, death with its parent, cheap memory for large imports and models."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARENT = "ITERIT_PARENT"  # environment variable: process id and start time of the process that a process works for
SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "fish", "busybox")


QUIET_DEFAULTS = {
    # torch's threads busy-wait otherwise, which slows every other process down
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "true",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job runners take 0.9 GB and outlive the server
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet_environment() -> None:
    """Set defaults for libraries that are chatty or phone home; the user's values stay. Call before their import."""
    for name, value in QUIET_DEFAULTS.items():
        os.environ.setdefault(name, value)


def name_as_parent() -> dict[str, str]:
    """The environment variable by which a process that this one starts knows whom it works for."""
    return {PARENT: f"{os.getpid()}:{_start_time(os.getpid())}"}


def die_with_parent() -> None:
    """Make this process end with SIGKILL as soon as the process it works for has ended (Linux; elsewhere no effect).

    Whoever starts it names itself in ITERIT_PARENT, because a process whose parent has ended before this call would
    take init for its parent. Without that variable, as under a bare `dvc repro`, it is the parent behind the `sh -c` of
    DVC. A killed DVC would leave its stage running, and a rerun would write to the same files.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if named := os.environ.get(PARENT):
        pid, _, started = named.partition(":")
        _follow(int(pid), started)
        return
    grandparent = _parent_behind_shell(parent)
    if grandparent not in (0, parent):
        _follow(grandparent, _start_time(grandparent))
    if os.getppid() != parent or _parent_behind_shell(parent) != grandparent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def _follow(pid: int, started: str | None) -> None:
    """End this process when that one ends, or now when it has ended; its number may be another process's by now."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        descriptor = -1
    if descriptor < 0 or started is None or _start_time(pid) != started:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=_die_after, args=(descriptor,), daemon=True, name="die-with-parent").start()


def _die_after(process_descriptor: int) -> None:
    select.select([process_descriptor], [], [])  # readable once the process has ended
    os.kill(os.getpid(), signal.SIGKILL)


def _parent_behind_shell(pid: int) -> int:
    """`pid`, or the parent of the `sh -c ...` that `pid` is; 0 when it has ended."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    if b"-c" in command[1:4] and Path(os.fsdecode(command[0])).name in SHELLS:
        return int((_status(pid) or ["", "0"])[1])
    return pid


def _start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None when it has ended."""
    status = _status(pid)
    return status[19] if status else None


def _status(pid: int) -> list[str] | None:
    """/proc/PID/stat from the process's state on; None when it has ended."""
    try:
        # the name in parentheses before it may hold any character, spaces and parentheses included
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def relax_gc() -> None:
    """Let Python collect garbage less often, and not at exit. Call before the large imports.

    PyTorch and transformers make a million objects that stay; each collection looks through all of them.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory (glibc; elsewhere nothing happens). Call before a model is loaded.

    It would return every large block to the system at once, which has to clear it again for the next tensor.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    m_trim_threshold, m_mmap_max = -1, -4  # names of malloc.h
    library.mallopt(m_mmap_max, 0)
    never = -1
    library.mallopt(m_trim_threshold, never)


@contextmanager
def hide_module(module: str) -> Iterator[None]:
    """Make imports of `module` fail in the block, as if it were not installed."""
    before = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before
