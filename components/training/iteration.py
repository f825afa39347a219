"""The training of one iteration: one pass over the subset, continuing from the parent's trainer state.

The loop is transformers.Trainer's; the optimizer and its distribution over processes are DeepSpeed's (conf/deepspeed/).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import deterministic
from transformers import PrinterCallback, TrainingArguments

from components.core.errors import UserError, first_line
from components.core.paths import PARAMS
from components.core.progress import progress
from components.core.settings.finetune import FinetuneSettings
from components.data.records import Record
from components.model.chat import encode_conditional
from components.model.load import copy_mapped_weights
from components.model.packing import packed_attention
from components.training.batches import (
    Example,
    balance_micro_batches,
    collate,
    collate_packed,
    effective_batches,
    supports_packing,
)
from components.training.deepspeed import CONFIGS, zero_stage
from components.training.resume import explain_full_disk, last_checkpoint, steps_of
from components.training.state import Progress, corrupt, read_progress, require_trainer_state
from components.training.step_logger import StepLogger
from components.training.trainer import IterationTrainer, Schedule, StepLoss


@dataclass(frozen=True, slots=True)
class Start:
    """Where a training starts: after the parent iteration, or after a checkpoint of this one."""

    parent: Progress
    done: int
    """Optimizer steps of this iteration before the checkpoint."""
    resume_from: Path | None
    """The folder that Trainer resumes from; None for the first step of all."""


def encode_subset(
    records: Sequence[Record],
    tokenizer: Any,
    settings: FinetuneSettings,
    *,
    system: str,
    iteration: int,
    template: str = "chat",
) -> list[Example]:
    """The subset in training order.

    Raises UserError for a record that the template refuses, or without a response token within max_length.
    """
    texts = encode_conditional(records, tokenizer, system=system, template=template, max_length=settings.max_length)
    for record, text in zip(records, texts, strict=True):
        if text.problem:
            raise UserError(
                f"record {record.id} (source {record.source}): {text.problem}; score and select it again with these "
                f"settings of {PARAMS}: score, or set them back"
            )
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


def find_start(parent_state: Path, scratch: Path, settings: FinetuneSettings) -> Start:
    """The start of the training: the last checkpoint in `scratch`, or else the parent's state.

    Raises UserError for a state of the parent that is missing, damaged, or written with other settings.
    """
    parent, checkpoint = read_progress(parent_state), last_checkpoint(scratch)
    if parent.step:
        check_resumable(parent, settings, parent_state)
    if checkpoint:
        return Start(parent, steps_of(checkpoint), checkpoint)
    return Start(parent, 0, require_trainer_state(parent_state) if parent.step else None)


def train_iteration(
    examples: Sequence[Example],
    model: Any,
    settings: FinetuneSettings,
    *,
    parent_state: Path,
    scratch: Path,
    what: str,
) -> None:
    """Train one pass in this process, one of `settings.processes`; `what` names the work in the progress line.

    Leaves Trainer's checkpoint and the log of its steps in `scratch`, and resumes from what an interrupted training
    left there. Raises UserError for a state that cannot be resumed, a loss that is not finite, or a full disk.
    """
    start = find_start(parent_state, scratch, settings)
    steps = len(examples) // settings.batch_size
    is_first = int(os.environ["RANK"]) == 0
    if has_plain_optimizer(settings) and settings.lora is None:
        copy_mapped_weights(model)
    packed = supports_packing(model)
    if packed:
        examples = balance_micro_batches(examples, settings.batch_size, _micro_batch(settings))
    elif is_first:
        print(f"{what}: padded batches, because packed texts would attend to each other in this model", flush=True)
    remaining = examples[start.done * settings.batch_size :]
    step_loss = StepLoss()
    with progress(total=steps, unit="steps", what=what) if is_first else nullcontext() as advance:
        if advance and start.done:
            advance(start.done)
        logger = StepLogger(
            remaining,
            settings.batch_size,
            step_loss,
            steps_before=start.parent.step,
            scratch=scratch if is_first else None,
            advance=advance,
            clip_norm=settings.clip_norm if has_plain_optimizer(settings) else None,
        )
        if remaining:
            trainer = IterationTrainer(
                make_schedule(start.parent.steps_per_iteration or steps, settings),
                step_loss,
                model=model,
                args=_arguments(settings, scratch, last_step=start.parent.step + steps),
                train_dataset=remaining,
                data_collator=collate_packed if packed else collate,
                callbacks=[logger],
            )
            trainer.remove_callback(PrinterCallback)
            with explain_full_disk(scratch), packed_attention(model) if packed else nullcontext():
                _train(trainer, start.resume_from, parent_state)
    assert start.done + logger.steps == steps, f"{start.done} + {logger.steps} steps were made, {steps} were due"


def has_plain_optimizer(settings: FinetuneSettings) -> bool:
    """Whether the optimizer is torch's own, without a wrapper by DeepSpeed."""
    return zero_stage(settings.deepspeed) == 0


def make_schedule(steps_per_iteration: int, settings: FinetuneSettings) -> Schedule:
    """The schedule over all planned iterations."""
    return Schedule(steps_per_iteration * settings.planned_iterations, settings.warmup_ratio)


def _micro_batch(settings: FinetuneSettings) -> int:
    """Records per forward pass of one process."""
    return min(settings.micro_batch_size, settings.batch_size // settings.processes)


def _arguments(settings: FinetuneSettings, scratch: Path, *, last_step: int) -> TrainingArguments:
    """Trainer's arguments; `last_step` counts across all iterations."""
    # torch.load never reads the checksums, which take half the time of writing a checkpoint
    torch.serialization.set_crc32_options(False)
    micro_batch = _micro_batch(settings)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        deepspeed=str(CONFIGS / f"{settings.deepspeed}.json"),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=settings.batch_size // (micro_batch * settings.processes),
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        max_steps=last_step,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=0.0 if has_plain_optimizer(settings) else settings.clip_norm,  # 0: StepLogger clips
        bf16=settings.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential",  # the examples are in training order
        ignore_data_skip=True,  # and are only those that are left of this iteration
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        full_determinism=settings.deterministic,
        seed=settings.seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=settings.save_steps,
        report_to=[],
        disable_tqdm=True,
        log_level_replica="error",  # as in the first process; "warning" would tell of save_steps, which StepLogger sets
    )
    # full determinism also fills every new tensor, which helps in debugging only and costs time
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return arguments


def check_resumable(parent: Progress, settings: FinetuneSettings, state: Path) -> None:
    """Raises UserError for settings with which DeepSpeed cannot load the parent's trainer state in `state`."""
    for key, written, current in (
        ("processes", parent.processes, settings.processes),
        ("deepspeed", parent.deepspeed, settings.deepspeed),
    ):
        if written != current:
            raise UserError(
                f"{PARAMS}: finetune.{key}: {current}, but {state} was written with {written}; "
                f"set it back, or train from the first iteration again: dvc repro -f finetune@1"
            )


def _train(trainer: Any, resume_from: Path | None, state: Path) -> None:
    """Run Trainer's loop. Raises UserError when it cannot read the trainer state that it resumes from."""
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except RuntimeError as error:
        if "PytorchStreamReader" in str(error):
            raise corrupt(state, first_line(error)) from error
        raise
    except (FileNotFoundError, EOFError, pickle.UnpicklingError) as error:
        raise corrupt(state, first_line(error)) from error
