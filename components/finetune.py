"""One iteration's training: a single pass over the subset, going on where the parent iteration stopped.

The model, the optimizer's moments, the place in the learning-rate schedule and the random state come from the parent,
so that N iterations as N stages are one continuous training. components/trainer.py has the loss and the schedule;
the loop is transformers.Trainer's, the optimizer and its distribution DeepSpeed's (conf/deepspeed).

    python -m components.finetune --iteration 2 --subset data/iterations/2/subset.parquet
        --parent-model models/1 --parent-state state/1 --model models/2 --state state/2 ...

With finetune.processes > 1 the stage starts that many workers of itself through torchrun.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import math
import os
import pickle
import resource
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components import tables
from components.chat import encode_conditional
from components.digests import file_digest
from components.errors import UserError
from components.progress import progress
from components.records import Record, read_records
from components.settings import FinetuneSettings, load_settings
from components.stage import BAD_INPUT, SCRATCH, die_with_parent, stage, stage_name

if TYPE_CHECKING:
    from components.trainer import Example, StepLog

CONFIGS = Path("conf/deepspeed")
PROGRESS = "progress.json"  # in a state folder: what the next iteration must know beside the trainer's own state
# of Trainer's checkpoint: the weights are in the model's folder; the others name paths, or are scripts of DeepSpeed's
NOT_STATE = ("*.safetensors*", "config.json", "generation_config.json", "training_args.bin", "*.py")
MODEL_FILES = ("*.safetensors*", "config.json", "generation_config.json")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the training is: optimizer steps so far, and the length of an iteration that the schedule counts with."""

    step: int
    steps_per_iteration: int | None
    processes: int | None = None
    deepspeed: str | None = None


def read_progress(state: Path) -> Progress:
    return Progress(**tables.read_json(state / PROGRESS))


def encode_subset(
    records: Sequence[Record], tokenizer: Any, settings: FinetuneSettings, *, system: str, iteration: int
) -> list[Example]:
    """The subset in training order; raises UserError for a record that has no response token within max_length."""
    from components.trainer import effective_batches

    texts = encode_conditional(records, tokenizer, system=system, max_length=settings.max_length)
    for record, text in zip(records, texts, strict=True):
        if not 0 < text.start < len(text.ids):
            raise UserError(
                f"record {record.id} (source {record.source}): no response token within finetune.max_length "
                f"{settings.max_length}; raise it, or lower score.max_length to the same value"
            )
    return effective_batches(
        [record.id for record in records],
        texts,
        batch_size=settings.batch_size,
        loss=settings.loss,
        seed=settings.seed,
        iteration=iteration,
    )


def train_iteration(
    examples: Sequence[Example],
    model: Any,
    settings: FinetuneSettings,
    *,
    parent_state: Path,
    scratch: Path,
    what: str,
) -> StepLog:
    """Train one pass in this process (one of `settings.processes`), and leave Trainer's checkpoint in `scratch`.

    Returns the log of its optimizer steps. Raises UserError for a state that cannot be resumed, and for a loss that is
    not finite.
    """
    import torch
    from transformers import PrinterCallback, TrainingArguments

    from components.trainer import IterationTrainer, Schedule, StepLog, collate

    before = read_progress(parent_state)
    steps = len(examples) // settings.batch_size
    schedule = Schedule((before.steps_per_iteration or steps) * settings.planned_iterations, settings.warmup_ratio)
    micro_batch = min(settings.micro_batch_size, settings.batch_size // settings.processes)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        deepspeed=str(CONFIGS / f"{settings.deepspeed}.json"),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=settings.batch_size // (micro_batch * settings.processes),
        max_steps=before.step + steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip_norm,
        bf16=settings.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential",  # the examples are in training order already
        ignore_data_skip=True,  # they are this iteration's alone
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        full_determinism=True,
        seed=settings.seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=before.step + steps,
        report_to=[],
        disable_tqdm=True,
    )
    is_first = int(os.environ["RANK"]) == 0
    with progress(total=steps, unit="steps", what=what) if is_first else nullcontext() as advance:
        log = StepLog(advance)
        trainer = IterationTrainer(
            schedule, model=model, args=arguments, train_dataset=list(examples), data_collator=collate, callbacks=[log]
        )
        log.trainer = trainer
        trainer.remove_callback(PrinterCallback)
        if before.step:
            _check_resumable(before, settings, parent_state)
            _resume(trainer, parent_state)
        else:
            trainer.train()
    assert len(log.steps) == steps, f"{len(log.steps)} steps were made, {steps} were due"
    return log


def _check_resumable(before: Progress, settings: FinetuneSettings, state: Path) -> None:
    """Raises UserError where DeepSpeed would fail, or go wrong, deep inside."""
    for key, then, now in (
        ("processes", before.processes, settings.processes),
        ("deepspeed", before.deepspeed, settings.deepspeed),
    ):
        if then != now:
            raise UserError(
                f"params.yaml: finetune.{key}: {now}, but {state} was written with {then}; "
                f"set it back, or train from the first iteration again: dvc repro -f finetune@1"
            )
    for file in sorted(state.rglob("*.pt*")):
        if not zipfile.is_zipfile(file):  # its directory is at its end: a cut file has none
            raise _corrupt(state, f"{file.name} is cut off")


def _resume(trainer: Any, state: Path) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(state))
    except RuntimeError as error:
        if "PytorchStreamReader" in str(error):
            raise _corrupt(state, str(error).splitlines()[0]) from error
        raise
    except (FileNotFoundError, EOFError, pickle.UnpicklingError) as error:
        raise _corrupt(state, str(error).splitlines()[0]) from error


def _corrupt(state: Path, what: str) -> UserError:
    return UserError(
        f"{state}: cannot be resumed: {what}; `dvc checkout {state}` brings it back from the cache, "
        f"`dvc repro -f finetune@{state.name}` trains it again"
    )


def run_worker(options: argparse.Namespace, settings: FinetuneSettings, system: str, scratch: Path) -> None:
    """One of the training processes: train, and let the first of them leave the steps beside the checkpoint."""
    import torch

    from components.score import load_model

    iteration, what = int(options.iteration), stage_name("finetune", options.iteration)
    model, tokenizer = load_model(options.parent_model, settings.dtype)
    examples = encode_subset(read_records(options.subset), tokenizer, settings, system=system, iteration=iteration)
    log = train_iteration(examples, model, settings, parent_state=options.parent_state, scratch=scratch, what=what)
    if int(os.environ["RANK"]) == 0:
        real = [example for example in examples if example.weight]
        tables.write_json(
            scratch / "steps.json",
            {
                "steps": [asdict(step) for step in log.steps],
                "records": len(real),
                "tokens": sum(len(example.ids) for example in real),
                "seconds": log.seconds,
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            },
        )


def launch_workers(processes: int, scratch: Path) -> None:
    """Start this module again as `processes` workers through torchrun, and wait. Raises UserError when one fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "components.finetune", *sys.argv[1:], "--worker"]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    done = subprocess.run(command, env={"OMP_NUM_THREADS": threads, **os.environ}, check=False)
    if done.returncode == 0:
        return
    said = scratch / "error.txt"
    if said.is_file():
        raise UserError(said.read_text(encoding="utf-8"))
    raise UserError(
        f"finetune: one of {processes} processes ended early (code {done.returncode}; what it said is above); "
        "nothing was written; run again, and if memory ran out lower finetune.micro_batch_size"
    )


def alone() -> None:
    """Make this process a distributed job of one; DeepSpeed asks for MPI when nothing says so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


def arrange(options: argparse.Namespace, settings: FinetuneSettings, scratch: Path) -> None:
    """Make the checkpoint and the state of what the workers left, and rename both into place as the last thing."""
    trained = tables.read_json(scratch / "steps.json")
    before, steps = read_progress(options.parent_state), trained["steps"]
    checkpoint = scratch / f"checkpoint-{before.step + len(steps)}"
    model, state = scratch / "model", scratch / "state"
    _copy_others(options.parent_model, model)
    for pattern in MODEL_FILES:
        for file in checkpoint.glob(pattern):
            file.replace(model / file.name)
    (model / "README.md").write_text(_model_card(options, trained), encoding="utf-8")
    _check_weights(model)
    for pattern in NOT_STATE:
        for file in checkpoint.glob(pattern):
            file.unlink()
    checkpoint.replace(state)
    after = Progress(
        before.step + len(steps), before.steps_per_iteration or len(steps), settings.processes, settings.deepspeed
    )
    tables.write_json(state / PROGRESS, asdict(after))
    for folder in (model, state):
        for file in folder.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors makes its files private

    with tables.written_beside(options.steps) as beside, beside.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(
            opened, ["step", "iteration", "loss", "learning_rate", "gradient_norm"], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows({"iteration": options.iteration, **step} for step in steps)
    losses = [step["loss"] for step in steps]
    tables.write_json(
        options.metrics,
        {
            "records": trained["records"],
            "tokens": trained["tokens"],
            "steps": len(steps),
            "training_loss": math.fsum(losses) / len(losses),
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "learning_rate": steps[-1]["learning_rate"],
        },
    )
    tables.write_json(
        SCRATCH / "throughput" / f"{stage_name('finetune', options.iteration)}.json",
        {
            "tokens_per_second": trained["tokens"] / trained["seconds"],
            "peak_memory_bytes": trained["peak_memory_bytes"],
            **({"peak_gpu_memory_bytes": trained["peak_gpu_memory_bytes"]} if trained["peak_gpu_memory_bytes"] else {}),
        },
    )
    for folder, place in ((state, options.state), (model, options.model)):
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        folder.replace(place)


def _copy_others(parent: Path, model: Path) -> None:
    """The parent's tokenizer, chat template and whatever else is no weight and no model card."""
    model.mkdir()
    for file in sorted(parent.iterdir()):
        if file.is_file() and file.name != "README.md" and not any(file.match(pattern) for pattern in MODEL_FILES):
            shutil.copyfile(file, model / file.name)


def _check_weights(model: Path) -> None:
    """Every tensor has its size: a sharded training that saved before gathering leaves empty ones."""
    from safetensors import safe_open

    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  it is no mapping
                if 0 in weights.get_slice(name).get_shape():
                    raise UserError(f"{file.name}: {name} was saved empty; see finetune.deepspeed")


def _model_card(options: argparse.Namespace, trained: dict[str, Any]) -> str:
    losses = [step["loss"] for step in trained["steps"]]
    return f"""---
library_name: transformers
tags: [iterit]
---

# Checkpoint of iteration {options.iteration}

Trained by iterit on {trained["records"]} records in {len(losses)} optimizer steps, going on from
`{options.parent_model.name}`. Loss of the first step {losses[0]:.4f}, of the last {losses[-1]:.4f}.

| what | SHA-256 |
| --- | --- |
| subset (Parquet) | `{file_digest(options.subset)}` |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("models/{options.iteration}")
tokenizer = AutoTokenizer.from_pretrained("models/{options.iteration}")
```
"""


def prepare_deepspeed() -> None:
    """Choose the accelerator and the place of DeepSpeed's extension, and quiet what a user can do nothing about."""
    import torch

    # compiled once, by `make setup`, for 70 s: it belongs to the environment
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else accelerate says that it sets it
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if "RANK" in os.environ:
        with redirect_stdout(io.StringIO()):  # it prints that its extension was built, also when it was only loaded
            deepspeed.init_distributed()
    # "Gradient accumulation steps mismatch": Trainer leaves the number to DeepSpeed's configuration
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def build_extension() -> None:
    """Compile what DeepSpeed's processes on one CPU machine share memory with, so that no training waits for it."""
    prepare_deepspeed()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.finetune", description="Train one pass over the subset."
    )
    parser.add_argument("--iteration", required=True)
    for name in ("subset", "parent-model", "parent-state", "model", "state", "steps", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = load_settings()
    scratch = SCRATCH / "tmp" / stage_name("finetune", options.iteration)
    if options.worker:
        die_with_parent()
        prepare_deepspeed()
        try:
            run_worker(options, settings.finetune, settings.score.system, scratch)
        except UserError as error:
            (scratch / "error.txt").write_text(str(error), encoding="utf-8")
            sys.exit(BAD_INPUT)
        return
    with stage("finetune", options.iteration):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        if settings.finetune.processes > 1:
            launch_workers(settings.finetune.processes, scratch)
        else:
            alone()
            prepare_deepspeed()
            run_worker(options, settings.finetune, settings.score.system, scratch)
        arrange(options, settings.finetune, scratch)
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
