"""Prepares DeepSpeed: its configurations, its accelerator, and the extension that it compiles."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

from components.core.errors import UserError
from components.core.paths import PARAMS
from components.core.process import hide_module

CONFIGS = Path("conf/deepspeed")


def check_precision(config: str, dtype: str) -> None:
    """Raises UserError for a dtype that would be trained wrongly at the ZeRO stage of `config`."""
    if dtype == "bfloat16" and zero_stage(config) == 0:
        raise UserError(
            f"{PARAMS}: finetune.dtype: bfloat16 does not go with finetune.deepspeed: {config}, because DeepSpeed's "
            "bfloat16 optimizer for ZeRO stage 0 makes a step before the first gradient; take zero1, zero2 or zero3"
        )


def zero_stage(config: str) -> int:
    """The ZeRO stage in conf/deepspeed/`config`.json; 0 where there is none."""
    settings = json.loads((CONFIGS / f"{config}.json").read_text(encoding="utf-8"))
    stage: int = settings.get("zero_optimization", {}).get("stage", 0)
    return stage


def prepare_deepspeed() -> None:
    """Import DeepSpeed for this machine's accelerator, without warnings that the user cannot act on."""
    import torch

    # `make setup` compiles the extension once, as part of the environment; another ninja would compile it again
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # accelerate warns when it sets the default
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed uses deprecated names of torch's collectives
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
    with hide_module("mlflow"):  # its autotuner would import MLflow only to check whether it is installed
        import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # DeepSpeed's Muon optimizer is decorated with torch.compile, which would import the compiler
    torch.compiler.set_default_backend("eager")
    if "RANK" in os.environ:
        with redirect_stdout(io.StringIO()):  # it reports that the extension was built even when it was only loaded
            if os.environ.get("DS_ACCELERATOR") == "cpu":
                load_extension()
            deepspeed.init_distributed()
    # its warning "Gradient accumulation steps mismatch" is unfounded: DeepSpeed's configuration has the right number
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def build_extension() -> None:
    """Compile the extension for shared memory between processes on a CPU, so that no training waits for that."""
    prepare_deepspeed()
    load_extension()


def load_extension() -> None:
    """Load the extension, and compile it where the environment has none or another one.

    A process that is killed while it compiles leaves torch's lock file behind, for which every later one would wait
    for ever. The lock here ends with its process, and who holds it knows that torch's is nobody's.
    """
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    builder = ShareMemCommBuilder()
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "iterit.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / builder.name / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)
