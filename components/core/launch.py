"""Starts a stage's worker processes: on this machine through torchrun, on the machines of a hostfile by DeepSpeed."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.core.errors import BAD_INPUT, UserError
from components.core.process import die_with_parent, name_as_parent, relax_gc

ERROR = "error.txt"  # in the scratch folder: the error that a worker ended with


def init_single_process() -> None:
    """Make this process a distributed job of one; without it DeepSpeed looks for MPI."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


def launch_workers(module: str, processes: int, hostfile: str | None, scratch: Path) -> None:
    """Start `module` with this command line and --worker as `processes` processes, and wait for them.

    Raises UserError when one fails: with the error of its `worker` block, or else with what to do next.
    """
    (scratch / ERROR).unlink(missing_ok=True)
    command = [sys.executable, "-m"]
    slots = {"localhost": processes} if hostfile is None else read_hostfile(Path(hostfile))
    if sum(slots.values()) != processes:
        raise UserError(
            f"params.yaml: finetune.processes: {processes}, but {hostfile} has {sum(slots.values())} slots; make "
            "them equal"
        )
    if len(slots) == 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    else:
        command += ["deepspeed.launcher.runner", "--hostfile", str(hostfile), "--module"]
    processes_here = max(slots.values())
    command += [module, *sys.argv[1:], "--worker"]
    threads = str(max(1, (os.cpu_count() or 1) // processes_here))
    done = subprocess.run(command, env={"OMP_NUM_THREADS": threads, **os.environ, **name_as_parent()}, check=False)
    if done.returncode == 0:
        return
    if (scratch / ERROR).is_file():
        raise UserError((scratch / ERROR).read_text(encoding="utf-8"))
    raise UserError(
        f"one of {processes} processes ended early (code {done.returncode}; what it said is above); nothing is lost: "
        "run again to go on from what was saved, and if memory ran out make the batches smaller"
    )


@contextmanager
def worker(scratch: Path) -> Iterator[None]:
    """Run the block as one of the processes of launch_workers, which reports a UserError of the block as its own."""
    die_with_parent()
    relax_gc()
    try:
        yield
    except UserError as error:
        (scratch / ERROR).write_text(str(error), encoding="utf-8")
        sys.exit(BAD_INPUT)


def read_hostfile(file: Path) -> dict[str, int]:
    """Processes by host, from lines `HOST slots=N` as DeepSpeed reads them. Raises UserError with the line."""
    if not file.is_file():
        raise UserError(f"params.yaml: finetune.hostfile: {file}: no such file")
    slots: dict[str, int] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*(\S+)\s+slots=(\d+)\s*", line)
        if not match or match[1] in slots:
            raise UserError(f"{file} line {number}: expected a new host and its slots: node1 slots=8")
        slots[match[1]] = int(match[2])
    return slots
