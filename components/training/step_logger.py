"""A callback around Trainer's optimizer steps: a line per step, marks of complete checkpoints, gradient clipping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from components.training.batches import Example
from components.training.resume import Step, append_step, mark_complete
from components.training.trainer import StepLoss


class StepLogger(TrainerCallback):
    """Writes a line for every optimizer step, marks complete checkpoints, and advances the progress bar."""

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        step_loss: StepLoss,
        *,
        steps_before: int,
        scratch: Path | None,
        advance: Callable[[int], object] | None,
        clip_norm: float | None,
    ) -> None:
        """Follow a training of `examples`, those that are left of this iteration.

        `steps_before`: optimizer steps of earlier iterations. `scratch` and `advance`: None in all processes but the
        first. `clip_norm`: None where DeepSpeed clips.
        """
        self.steps = 0  # made since this training was started
        batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
        self._tokens = [sum(len(example.ids) for example in batch if example.weight) for batch in batches]
        self._step_loss = step_loss
        self._steps_before = steps_before
        self._scratch = scratch
        self._advance = advance
        self._clip_norm = clip_norm
        self._started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **rest: Any
    ) -> None:
        state.save_steps = args.save_steps  # Trainer would keep the number in the checkpoint that it resumes from
        if self._clip_norm is not None:
            clip_before_steps(optimizer.optimizer, self._clip_norm)

    def on_step_begin(self, *arguments: Any, **rest: Any) -> None:
        self._started = time.monotonic()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **rest: Any
    ) -> None:
        if "learning_rate" not in logs:
            return
        loss = self._step_loss.take()
        if args.world_size > 1:
            torch.distributed.all_reduce(loss)
        seconds, tokens = time.monotonic() - self._started, self._tokens[self.steps]
        self.steps += 1
        if self._scratch is None or self._advance is None:
            return
        step = Step(
            step=state.global_step,
            loss=loss.item(),
            learning_rate=logs["learning_rate"],
            gradient_norm=float(logs.get("grad_norm", math.nan)),
            tokens_per_second=tokens / seconds,
            seconds=seconds,
        )
        append_step(self._scratch, step)
        self._advance(1)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # until every process has written its part
        if self._scratch is not None:
            mark_complete(self._scratch / f"checkpoint-{state.global_step}", state.global_step - self._steps_before)


def clip_before_steps(optimizer: torch.optim.Optimizer, norm: float) -> None:
    """Scale gradients down to `norm` before every step, and store their norm where DeepSpeed looks for it.

    DeepSpeed's ZeRO optimizers do both. For a plain optimizer, at ZeRO stage 0 in float32, DeepSpeed would clip without
    reporting the norm.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def clip(*_: Any) -> None:
        optimizer._global_grad_norm = torch.nn.utils.clip_grad_norm_(weights, norm)  # type: ignore[attr-defined]

    optimizer.register_step_pre_hook(clip)
