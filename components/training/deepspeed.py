"""DeepSpeed in this process: its configurations, its accelerator, and the extension that it compiles."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

from components.core.errors import UserError
from components.core.process import hide_module

CONFIGS = Path("conf/deepspeed")


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
    """Import DeepSpeed for this machine's accelerator, without warnings that a user can do nothing about."""
    import torch

    # `make setup` compiles the extension once, as a part of the environment
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # accelerate warns when it has to set it
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed calls torch's collectives by deprecated names
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
    with hide_module("mlflow"):  # its autotuner imports MLflow, for 2 s, to see whether it is installed
        import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # DeepSpeed decorates its Muon optimizer with torch.compile, which would import the compiler
    torch.compiler.set_default_backend("eager")
    if "RANK" in os.environ:
        with redirect_stdout(io.StringIO()):  # it reports the extension as built also when it was only loaded
            deepspeed.init_distributed()
    # "Gradient accumulation steps mismatch" is meant so: DeepSpeed's configuration has the number
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def build_extension() -> None:
    """Compile the extension for shared memory between processes on a CPU, so that no training waits for it."""
    prepare_deepspeed()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)
