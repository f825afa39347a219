"""One iteration's training: a single pass over the subset, going on where the parent iteration stopped.

The model, the optimizer's moments, the place in the learning-rate schedule and the random state come from the parent,
so that N iterations as N stages are one continuous training. components/trainer.py has the loss and the schedule;
the loop is transformers.Trainer's, the optimizer and its distribution DeepSpeed's (conf/deepspeed).

    python -m components.finetune --iteration 2 --subset data/iterations/2/subset.parquet
        --parent-model models/1 --parent-state state/1 --model models/2 --state state/2 ...

With finetune.processes > 1 the stage starts that many workers of itself through torchrun, or through DeepSpeed's
launcher on the machines of a hostfile. Killed, it goes on from the last checkpoint it has saved (finetune.save_steps).
"""

from __future__ import annotations

import argparse
import csv
import errno
import math
import os
import pickle
import resource
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components import preloaded, tables, training_state
from components.adapters import merge, with_adapter
from components.chat import encode_conditional
from components.digests import file_digest, known_digest
from components.errors import UserError
from components.launch import (
    CONFIGS,
    ERROR,
    be_alone,
    check_precision,
    launch_workers,
    prepare_deepspeed,
    zero_stage,
)
from components.progress import progress
from components.records import Record, read_records
from components.scratch import throughput_file
from components.settings import FinetuneSettings, Settings, load_settings
from components.stage import BAD_INPUT, collect_rarely, die_with_parent, stage, stage_name
from components.throughput import forward_operations, measure_gemm
from components.training_state import Progress, read_progress

if TYPE_CHECKING:
    from components.trainer import Example

# of Trainer's checkpoint: the weights are in the model's folder; the others name paths, are scripts of DeepSpeed's, or
# mark the checkpoint as whole
NOT_STATE = (
    "*.safetensors*",
    "config.json",
    "generation_config.json",
    "training_args.bin",
    "*.py",
    training_state.COMPLETE,
)
MODEL_FILES = ("*.safetensors*", "config.json", "generation_config.json")


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
) -> None:
    """Train one pass in this process (one of `settings.processes`).

    Leaves Trainer's checkpoint and the log of its steps in `scratch`; begins where an earlier start of the same
    training had got to. Raises UserError for a state that cannot be resumed, for a loss that is not finite, and when
    the disk is full.
    """
    import torch
    from torch.utils import deterministic
    from transformers import PrinterCallback, TrainingArguments

    from components.model import own_weights
    from components.packing import packed_attention
    from components.trainer import IterationTrainer, Schedule, Watch, collate, collate_packed, deal_out, packs

    before = read_progress(parent_state)
    steps = len(examples) // settings.batch_size
    schedule = Schedule((before.steps_per_iteration or steps) * settings.planned_iterations, settings.warmup_ratio)
    micro_batch = min(settings.micro_batch_size, settings.batch_size // settings.processes)
    plain = zero_stage(settings.deepspeed) == 0  # the optimizer is torch's own, not wrapped by DeepSpeed's
    if plain and settings.lora is None:
        own_weights(model)
    saved = training_state.last_checkpoint(scratch)
    made = tables.read_json(saved / training_state.COMPLETE)["steps"] if saved else 0
    if before.step:
        check_resumable(before, settings, parent_state)
    start = saved or (training_state.find_trainer_state(parent_state) if before.step else None)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        deepspeed=str(CONFIGS / f"{settings.deepspeed}.json"),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=settings.batch_size // (micro_batch * settings.processes),
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        max_steps=before.step + steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=0.0 if plain else settings.clip_norm,  # components/trainer.py clips a plain optimizer
        bf16=settings.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential",  # the examples are in training order already
        ignore_data_skip=True,  # they are what is left of this iteration's
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        full_determinism=settings.deterministic,
        seed=settings.seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=settings.save_steps,
        report_to=[],
        disable_tqdm=True,
    )
    # torch.load does not look at the checksum in its files, which takes half the time of writing them
    torch.serialization.set_crc32_options(False)
    # deterministic mode would fill every new tensor, a help for finding faults that costs a twentieth of the time
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    is_first = int(os.environ["RANK"]) == 0
    with progress(total=steps, unit="steps", what=what) if is_first else nullcontext() as advance:
        if advance and made:
            advance(made)
        packed = packs(model)
        if is_first and not packed:
            print(f"{what}: padded batches, because texts in one row would see each other in this model", flush=True)
        ordered = deal_out(examples, settings.batch_size, micro_batch) if packed else examples
        left = list(ordered)[made * settings.batch_size :]
        watch = Watch(
            left,
            settings.batch_size,
            before.step,
            scratch if is_first else None,
            advance,
            clip_norm=settings.clip_norm if plain else None,
        )
        trainer = IterationTrainer(
            schedule,
            model=model,
            args=arguments,
            train_dataset=left,
            data_collator=collate_packed if packed else collate,
            callbacks=[watch],
        )
        watch.trainer = trainer
        trainer.remove_callback(PrinterCallback)
        if made < steps:
            with enough_space(scratch), packed_attention(model) if packed else nullcontext():
                _train(trainer, start, parent_state)
    assert made + watch.steps == steps, f"{made} + {watch.steps} steps were made, {steps} were due"


def check_resumable(before: Progress, settings: FinetuneSettings, state: Path) -> None:
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


def _train(trainer: Any, start: Path | None, state: Path) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    except RuntimeError as error:
        if "PytorchStreamReader" in str(error):
            raise training_state.corrupt(state, str(error).splitlines()[0]) from error
        raise
    except (FileNotFoundError, EOFError, pickle.UnpicklingError) as error:
        raise training_state.corrupt(state, str(error).splitlines()[0]) from error


@contextmanager
def enough_space(scratch: Path) -> Iterator[None]:
    """Turn what the libraries raise when a file cannot be written to its end into one line with the way on."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not full and not any(text in str(error) for text in ("PytorchStreamWriter", "No space left", "too large")):
            raise
        saved = training_state.last_checkpoint(scratch)
        way = f"it goes on after {saved.name}" if saved else "the parent's checkpoint is as it was"
        raise UserError(
            f"finetune: a checkpoint could not be written ({shutil.disk_usage(scratch).free >> 20} MiB are free); "
            f"make room and run again: {way}"
        ) from error


def run_worker(options: argparse.Namespace, settings: FinetuneSettings, system: str, scratch: Path) -> None:
    """One of the training processes: train, and let the first of them say what it took."""
    import torch

    from components.model import load_model

    iteration, what = int(options.iteration), stage_name("finetune", options.iteration)
    if settings.lora is None:
        model, tokenizer = load_model(options.parent_model, settings.dtype)
    else:
        model, tokenizer = with_adapter(options.parent_model, settings.lora, settings.dtype)
    examples = encode_subset(read_records(options.subset), tokenizer, settings, system=system, iteration=iteration)
    real = [example for example in examples if example.weight]
    tokens, scored = sum(len(one.ids) for one in real), sum(len(one.ids) - one.start for one in real)
    passes = 3 if settings.lora is None else 2  # forward, and gradients of activations and, unless frozen, of weights
    operations = passes * forward_operations(model, tokens, scored)  # now: ZeRO-3 will share the weights out
    train_iteration(examples, model, settings, parent_state=options.parent_state, scratch=scratch, what=what)
    torch.distributed.destroy_process_group()  # a process whose threads outlive Python may end with SIGABRT
    if int(os.environ["RANK"]) == 0:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        tables.write_json(
            scratch / "trained.json",
            {
                "records": len(real),
                "tokens": tokens,
                "operations": operations,
                "gemm": settings.processes * measure_gemm(device, settings.dtype),
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            },
        )


def arrange(options: argparse.Namespace, settings: FinetuneSettings, scratch: Path) -> None:
    """Make the checkpoint and the state of what the workers left, and rename both into place as the last thing."""
    trained, steps = tables.read_json(scratch / "trained.json"), training_state.read_steps(scratch)
    before = read_progress(options.parent_state)
    checkpoint = training_state.last_checkpoint(scratch)
    assert checkpoint and checkpoint.name == f"checkpoint-{before.step + len(steps)}"
    model, state = scratch / "model", scratch / "state"
    _copy_others(options.parent_model, model)
    if settings.lora is None:
        for pattern in MODEL_FILES:
            for file in checkpoint.glob(pattern):
                file.replace(model / file.name)
    else:
        merge(checkpoint, model)
    (model / "README.md").write_text(_model_card(options, trained, steps), encoding="utf-8")
    _check_weights(model)
    for pattern in NOT_STATE:
        for file in checkpoint.glob(pattern):
            file.unlink()
    after = Progress(
        before.step + len(steps), before.steps_per_iteration or len(steps), settings.processes, settings.deepspeed
    )
    # these tell how often the stage was interrupted; a training does not go on from them
    written = tables.read_json(checkpoint / "trainer_state.json")
    written |= {"log_history": [], "epoch": None, "save_steps": 0, "total_flos": 0, "num_train_epochs": 0}
    tables.write_json(checkpoint / "trainer_state.json", written)
    training_state.keep_trainer_state(checkpoint, state, after, keep_all=settings.keep_states == "all")
    for folder in (model, state):
        for file in folder.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors makes its files private

    with tables.written_beside(options.steps) as beside, beside.open("w", newline="", encoding="utf-8") as opened:
        columns = ["step", "iteration", "loss", "learning_rate", "gradient_norm"]
        writer = csv.DictWriter(opened, columns, lineterminator="\n", extrasaction="ignore")
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
    seconds = math.fsum(step["seconds"] for step in steps)
    tables.write_json(
        throughput_file(stage_name("finetune", options.iteration)),
        {
            "tokens_per_second": trained["tokens"] / seconds,
            "share_of_gemm": trained["operations"] / seconds / trained["gemm"],
            "peak_memory_bytes": trained["peak_memory_bytes"],
            **({"peak_gpu_memory_bytes": trained["peak_gpu_memory_bytes"]} if trained["peak_gpu_memory_bytes"] else {}),
            "steps": {step["step"]: step["tokens_per_second"] for step in steps},
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


def _model_card(options: argparse.Namespace, trained: dict[str, Any], steps: Sequence[dict[str, float]]) -> str:
    losses = [step["loss"] for step in steps]
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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.finetune", description="Train one pass over the subset."
    )
    parser.add_argument("--iteration", required=True)
    for name in ("subset", "parent-model", "parent-state", "model", "state", "steps", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    # DeepSpeed's launcher adds it
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = load_settings()
    scratch = training_state.scratch_of(options.iteration)
    if options.worker:
        die_with_parent()
        collect_rarely()
        prepare_deepspeed()
        try:
            run_worker(options, settings.finetune, settings.score.system, scratch)
        except UserError as error:
            (scratch / ERROR).write_text(str(error), encoding="utf-8")
            sys.exit(BAD_INPUT)
        return
    with stage("finetune", options.iteration) as arithmetic:
        check_precision(settings.finetune.deepspeed, settings.finetune.dtype)
        training_state.prune_trainer_states(options.parent_state)
        saved = training_state.begin(scratch, identity(options, settings))
        made = len(training_state.read_steps(scratch))
        if saved:
            print(f"{stage_name('finetune', options.iteration)}: going on after {saved.name}", flush=True)
        if settings.finetune.processes > 1:
            launch_workers("components.finetune", settings.finetune.processes, settings.finetune.hostfile, scratch)
        else:
            be_alone()
            prepare_deepspeed()
            run_worker(options, settings.finetune, settings.score.system, scratch)
        arithmetic.seconds = math.fsum(step["seconds"] for step in training_state.read_steps(scratch)[made:])
        with enough_space(scratch):
            arrange(options, settings.finetune, scratch)
        shutil.rmtree(scratch)


def identity(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """What a training must have been begun with for its checkpoints to be gone on from."""
    code = ("finetune", "trainer", "packing", "adapters", "chat", "model", "launch")
    return {
        "subset": file_digest(options.subset),
        "parent_model": known_digest(options.parent_model),
        "parent_state": asdict(read_progress(options.parent_state)),
        "settings": {**settings.finetune.model_dump(), "system": settings.score.system},
        "config": file_digest(CONFIGS / f"{settings.finetune.deepspeed}.json"),
        "code": {name: file_digest(Path(__file__).with_name(f"{name}.py")) for name in code},
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed", "accelerate")},
    }


if __name__ == "__main__":
    preloaded.run("components.finetune", main)
