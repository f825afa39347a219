"""Starts the training processes: one here, several through torchrun, or some on each machine of a hostfile."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from components.errors import UserError

CONFIGS = Path("conf/deepspeed")
ERROR = "error.txt"  # in the scratch folder: the one line that a worker ended with


def check_precision(config: str, dtype: str) -> None:
    """Raises UserError for a dtype that DeepSpeed's optimizer of the ZeRO stage would train wrongly."""
    if dtype == "bfloat16" and zero_stage(config) == 0:
        raise UserError(
            f"params.yaml: finetune.dtype: bfloat16 does not go with finetune.deepspeed: {config}, whose optimizer "
            "(DeepSpeed's for ZeRO stage 0) makes a step before the first gradient; take zero1, zero2 or zero3"
        )


def zero_stage(config: str) -> int:
    """The stage that conf/deepspeed/`config`.json names; 0 where it names none."""
    settings = json.loads((CONFIGS / f"{config}.json").read_text(encoding="utf-8"))
    stage: int = settings.get("zero_optimization", {}).get("stage", 0)
    return stage


def prepare_deepspeed() -> None:
    """Choose the accelerator and the place of DeepSpeed's extension, and quiet what a user can do nothing about."""
    import torch

    # compiled once, by `make setup`, for 70 s: it belongs to the environment
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else accelerate says that it sets it
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed calls torch's collectives by names that are going to change
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
    with without("mlflow"):  # its autotuner asks whether there is one, for 2 s
        import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # nothing is compiled here; DeepSpeed decorates its Muon optimizer, and would import the compiler for 0.7 s
    torch.compiler.set_default_backend("eager")
    if "RANK" in os.environ:
        with redirect_stdout(io.StringIO()):  # it prints that its extension was built, also when it was only loaded
            deepspeed.init_distributed()
    # "Gradient accumulation steps mismatch": Trainer leaves the number to DeepSpeed's configuration
    logging.getLogger("accelerate").setLevel(logging.ERROR)


@contextmanager
def without(module: str) -> Iterator[None]:
    """A module that is not installed as long as the block; what is imported in it does without."""
    before = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before


def build_extension() -> None:
    """Compile what DeepSpeed's processes on one CPU machine share memory with, so that no training waits for it."""
    prepare_deepspeed()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)


def be_alone() -> None:
    """Make this process a distributed job of one; DeepSpeed asks for MPI when nothing says so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


def launch_workers(module: str, processes: int, hostfile: str | None, scratch: Path) -> None:
    """Start `module` again with this command line and --worker, as so many processes, and wait.

    Raises UserError when one fails: with what it said, or else with the way on.
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
    here = max(slots.values())
    command += [module, *sys.argv[1:], "--worker"]
    threads = str(max(1, (os.cpu_count() or 1) // here))
    done = subprocess.run(command, env={"OMP_NUM_THREADS": threads, **os.environ}, check=False)
    if done.returncode == 0:
        return
    if (scratch / ERROR).is_file():
        raise UserError((scratch / ERROR).read_text(encoding="utf-8"))
    raise UserError(
        f"one of {processes} processes ended early (code {done.returncode}; what it said is above); nothing is lost: "
        "run again to go on from what was saved, and if memory ran out make the batches smaller"
    )


def read_hostfile(file: Path) -> dict[str, int]:
    """Processes by host: lines `HOST slots=N`, as DeepSpeed's launcher reads them. Raises UserError with the line."""
    if not file.is_file():
        raise UserError(f"params.yaml: finetune.hostfile: {file}: no such file")
    slots: dict[str, int] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*(\S+)\s+slots=(\d+)\s*", line)
        if not match or match[1] in slots:
            raise UserError(f"{file} line {number}: expected a host that is not named yet, and slots: node1 slots=8")
        slots[match[1]] = int(match[2])
    return slots
