"""transformers.Trainer under DeepSpeed, with an exact loss for every batch and one schedule for all iterations.

An optimizer step is over an effective batch of `batch_size` records, whatever the number of processes and micro
batches. Every record carries its weight in the loss of its effective batch,

    loss: record    1 / records of the effective batch, for the record's mean loss over its response tokens
    loss: token     1 / response tokens of the effective batch, for the record's summed loss

so the loss of a step is the sum over its micro batches and processes. The last batch of an iteration is filled with
examples of weight 0, which do not change its loss. Where the model allows it, the records of a micro batch are packed
into one row (components/model/packing.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers.optimization import get_cosine_schedule_with_warmup

from components.core.errors import UserError
from components.core.process import hide_module
from components.training.batches import IGNORED, model_inputs

with hide_module("datasets"):  # Trainer would import it, and pandas with it, only to recognize its classes
    from transformers import Trainer


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up and cosine to zero over the optimizer steps of the planned iterations; then a new cycle begins."""

    steps: int
    """Optimizer steps of a cycle."""
    warmup_ratio: float

    def attach(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        """A scheduler that sets the learning rate of `optimizer`."""
        warmup = math.ceil(self.warmup_ratio * self.steps)
        cycle = get_cosine_schedule_with_warmup(optimizer, warmup, self.steps).lr_lambdas[0]
        return LambdaLR(optimizer, lambda step: cycle(step % self.steps))


class StepLoss:
    """The sum of this process's losses over the micro batches of an optimizer step, in nats."""

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

    loss_is_scaled_for_ga = True  # the weights are those of the whole step, so Trainer must not divide the loss

    def __init__(self, schedule: Schedule, step_loss: StepLoss, **arguments: Any) -> None:
        """`arguments`: those of transformers.Trainer."""
        super().__init__(**arguments)
        self._schedule = schedule
        self._step_loss = step_loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        self.lr_scheduler = self._schedule.attach(optimizer or self.optimizer)
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The library's, with a separate random stream.

        Each new iterator draws a number from it, so a training that was interrupted would draw more of them.
        """
        loader: DataLoader[Any] = super().get_train_dataloader()
        getattr(loader, "base_dataloader", loader).generator = torch.Generator()
        return loader

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The part of the step's loss in this process, in nats; float32 whatever the model's dtype."""
        labels = inputs["labels"][:, 1:]
        scored = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)  # positions that need logits
        logits = model(**model_inputs(inputs), use_cache=False, logits_to_keep=scored).logits
        losses = functional.cross_entropy(
            logits.float().flatten(0, 1), labels[:, scored].flatten(), ignore_index=IGNORED, reduction="none"
        )
        # not a tensor in the batch, which Trainer would round to the model's dtype
        weights = torch.tensor(inputs["weights"], device=losses.device)[:, 1:]
        loss = torch.dot(losses, weights[:, scored].flatten())
        if not torch.isfinite(loss):
            ids = ", ".join(key for key in inputs["record_ids"] if key)
            raise UserError(
                f"finetune: the loss is {loss.item()} on records {ids}; lower finetune.learning_rate, or look at them"
            )
        self._step_loss.add(loss)
        # DeepSpeed averages gradients over the processes; the step's loss is their sum
        return loss.mul(self.args.world_size)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights without the library's state dict, which clones tied weights and would save them twice.

        Under ZeRO-3 the weights are sharded, and the library gathers them.
        """
        if self.accelerator.deepspeed_plugin.zero_stage == 3:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir)
