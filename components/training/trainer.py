"""transformers.Trainer under DeepSpeed, with a loss that is exact for every batch and one schedule for all iterations.

An optimizer step is over an effective batch of `batch_size` records, whatever the number of processes and micro
batches. Every record carries its weight in the loss of its effective batch,

    loss: record    1 / records of the effective batch, on the record's mean loss over its response tokens
    loss: token     1 / response tokens of the effective batch, on the record's summed loss

so the loss of a step is the sum over its micro batches and processes. The last batch of an iteration is filled up with
records of weight 0, which leaves its loss right. A micro batch is one row, its records one after the
other and nothing padded, wherever the model allows that (components/model/packing.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.optimization import get_cosine_schedule_with_warmup

from components.core.errors import UserError
from components.training.batches import IGNORED, model_inputs


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up and cosine to zero over `steps` optimizer steps, those of the planned iterations; then again."""

    steps: int
    warmup_ratio: float

    def multiplier(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        warmup = math.ceil(self.warmup_ratio * self.steps)
        cycle = get_cosine_schedule_with_warmup(optimizer, warmup, self.steps).lr_lambdas[0]
        return LambdaLR(optimizer, lambda step: cycle(step % self.steps))


class StepLoss:
    """The loss of this process, in nats, added up over the micro batches of an optimizer step."""

    def __init__(self) -> None:
        self._sum = torch.zeros(())

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of a micro batch."""
        self._sum = self._sum + loss.detach().cpu()

    def take(self) -> torch.Tensor:
        """The sum since the last call."""
        loss, self._sum = self._sum, torch.zeros(())
        return loss


class IterationTrainer(Trainer):
    """Trainer with the loss and the schedule of this module; everything else is the library's."""

    loss_is_scaled_for_ga = True  # the weights make the sum over micro batches the loss of the step

    def __init__(self, schedule: Schedule, step_loss: StepLoss, **rest: Any) -> None:
        """`rest`: what transformers.Trainer takes."""
        super().__init__(**rest)
        self._schedule = schedule
        self._step_loss = step_loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        self.lr_scheduler = self._schedule.multiplier(optimizer or self.optimizer)
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The library's, with a separate random stream.

        Each new iterator draws a number, so a training that was interrupted would draw more of them.
        """
        loader: DataLoader[Any] = super().get_train_dataloader()
        getattr(loader, "base_dataloader", loader).generator = torch.Generator()
        return loader

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The part that this process has of the step's loss, in nats; float32 whatever the model's dtype."""
        labels = inputs["labels"][:, 1:]
        scored = (
            (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
        )  # logits are computed only where a record has a label
        logits = model(**model_inputs(inputs), use_cache=False, logits_to_keep=scored).logits
        losses = functional.cross_entropy(
            logits.float().flatten(0, 1), labels[:, scored].flatten(), ignore_index=IGNORED, reduction="none"
        )
        # the batch holds them as numbers: Trainer would round a tensor to the model's dtype
        weights = torch.tensor(inputs["weights"], device=losses.device)[:, 1:]
        loss = torch.dot(losses, weights[:, scored].flatten())
        if not torch.isfinite(loss):
            named = ", ".join(id_ for id_ in inputs["record_ids"] if id_)
            raise UserError(
                f"finetune: the loss is {loss.item()} on records {named}; lower finetune.learning_rate, or look at them"
            )
        self._step_loss.add(loss)
        # DeepSpeed averages gradients over the processes; the step's loss is their sum
        return loss.mul(self.args.world_size)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights that every process holds in full directly; under ZeRO-3 the library gathers them first.

        The library's state dict under DeepSpeed clones tied weights, and would save them twice.
        """
        if self.accelerator.deepspeed_plugin.zero_stage == 3:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir)
