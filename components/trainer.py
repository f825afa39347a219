"""transformers.Trainer under DeepSpeed, told what one iteration is: batches whose loss is exact, and one schedule.

An optimizer step is over an effective batch of `batch_size` records, whatever the number of processes and micro
batches. Every record carries its weight in the loss of its effective batch,

    loss: record    1 / records of the effective batch, on the record's mean loss over its response tokens
    loss: token     1 / response tokens of the effective batch, on the record's summed loss

so the loss of a step is the sum over its micro batches and processes, and the last step of an iteration, over what is
left, is right by itself: it is filled up with records of weight 0. A micro batch is one row, its records one after the
other and nothing padded, wherever the model allows that (components/packing.py).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.optimization import get_cosine_schedule_with_warmup

from components import training_state
from components.chat import Encoded
from components.errors import UserError
from components.packing import agrees

IGNORED = -100  # label of a position that is no part of the response


@dataclass(frozen=True, slots=True)
class Example:
    """One record as the model sees it; `weight` is its share of the loss of its effective batch."""

    id: str
    ids: list[int]
    start: int  # of the response
    weight: float


def effective_batches(
    ids: Sequence[str], texts: Sequence[Encoded], *, batch_size: int, loss: str, seed: int, iteration: int
) -> list[Example]:
    """The subset in training order, a multiple of `batch_size` long; the last batch ends with examples of weight 0.

    The order is shuffled by seed and iteration. Within an effective batch it changes nothing but speed: there the
    longest stand first, so that records of similar length are padded together.
    """
    order = list(range(len(ids)))
    random.Random(f"{seed}:{iteration}").shuffle(order)  # noqa: S311  a shuffle, not a secret
    examples = []
    for start in range(0, len(order), batch_size):
        batch = sorted(order[start : start + batch_size], key=lambda index: (-len(texts[index].ids), index))
        tokens = sum(len(texts[index].ids) - texts[index].start for index in batch)
        for index in batch:
            text = texts[index]
            weight = 1 / tokens if loss == "token" else 1 / (len(batch) * (len(text.ids) - text.start))
            examples.append(Example(ids[index], text.ids, text.start, weight))
        examples += [Example("", texts[batch[-1]].ids[:2], 1, 0.0)] * (batch_size - len(batch))
    return examples


def deal_out(examples: Sequence[Example], batch_size: int, micro_batch_size: int) -> list[Example]:
    """The examples with those of each effective batch dealt out to its micro batches, back and forth.

    For rows without padding: they come out of like length. The longest of them decides how much memory a training
    needs, and what the other processes wait for.
    """
    dealt: list[Example] = []
    piles = batch_size // micro_batch_size
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        rounds = [batch[first : first + piles] for first in range(0, batch_size, piles)]
        rounds[1::2] = [one[::-1] for one in rounds[1::2]]
        dealt += [example for pile in zip(*rounds, strict=True) for example in pile]
    return dealt


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """One row a record, padded on the right: tensors of shape (examples, longest), the mask from lengths."""
    longest = max(len(example.ids) for example in examples)
    rows = [_row(example, longest - len(example.ids)) for example in examples]
    mask = [[1] * len(example.ids) + [0] * (longest - len(example.ids)) for example in examples]
    return {
        "input_ids": torch.stack([ids for ids, _, _ in rows]),
        "labels": torch.stack([labels for _, labels, _ in rows]),
        "weights": torch.stack([weights for _, _, weights in rows]).tolist(),
        "record_ids": [example.id for example in examples],
        "attention_mask": torch.tensor(mask),
    }


def collate_packed(examples: Sequence[Example]) -> dict[str, Any]:
    """All records one after the other in a single row: tensors of shape (1, tokens), for components/packing.py."""
    ids, labels, weights = (torch.cat(parts)[None] for parts in zip(*map(_row, examples), strict=True))
    lengths = [len(example.ids) for example in examples]
    return {
        "input_ids": ids,
        "labels": labels,
        "weights": weights.tolist(),
        "record_ids": [example.id for example in examples],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "iterit_lengths": lengths,
    }


def _row(example: Example, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels (the response's ids; IGNORED elsewhere) and the weight of each label in the loss."""
    ids = torch.tensor(example.ids + [0] * padding)
    labels, weights = torch.full_like(ids, IGNORED), torch.zeros(len(ids))
    response = slice(example.start, len(example.ids))
    labels[response], weights[response] = ids[response], example.weight
    return ids, labels, weights


def packs(model: Any) -> bool:
    """Whether records can lie in one row: tried on two short ones."""
    model.eval()  # nothing of it is random; Trainer sets it back
    examples = [Example("", list(range(first, last)), 1, 0.0) for first, last in ((0, 5), (5, 13))]

    def logits(batch: dict[str, Any]) -> Any:
        found = model(**_model_inputs(send_to_device(batch, model.device)), use_cache=False).logits[0]
        return found - found.mean(dim=-1, keepdim=True)  # what all tokens share would hide a difference

    with torch.no_grad():
        alone = [logits(collate([example])) for example in examples]
        return agrees(model, alone, lambda: logits(collate_packed(examples)))


def _model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    names = ("input_ids", "attention_mask", "position_ids", "iterit_lengths")
    return {name: batch[name] for name in names if name in batch}


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up and cosine to zero, once for every `steps` optimizer steps: the planned iterations are one cycle."""

    steps: int
    warmup_ratio: float

    def multiplier(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        warmup = math.ceil(self.warmup_ratio * self.steps)
        cycle = get_cosine_schedule_with_warmup(optimizer, warmup, self.steps).lr_lambdas[0]
        return LambdaLR(optimizer, lambda step: cycle(step % self.steps))


class IterationTrainer(Trainer):
    """Trainer with the loss and the schedule of this module; everything else is the library's."""

    loss_is_scaled_for_ga = True  # the weights make the sum over micro batches the loss of the step

    def __init__(self, schedule: Schedule, **rest: Any) -> None:
        super().__init__(**rest)
        self._schedule = schedule
        self.step_loss = torch.zeros(())  # of this process, over the micro batches since the last step

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        self.lr_scheduler = self._schedule.multiplier(optimizer or self.optimizer)
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The library's, with a random stream of its own.

        Each start of an iterator draws a number, and a training that was interrupted has started more of them.
        """
        loader: DataLoader[Any] = super().get_train_dataloader()
        getattr(loader, "base_dataloader", loader).generator = torch.Generator()
        return loader

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The part of the step's loss that this process has, in nats; float32 whatever the model's dtype."""
        labels = inputs["labels"][:, 1:]
        scored = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)  # no logits where no record has a label
        logits = model(**_model_inputs(inputs), use_cache=False, logits_to_keep=scored).logits
        losses = functional.cross_entropy(
            logits.float().flatten(0, 1), labels[:, scored].flatten(), ignore_index=IGNORED, reduction="none"
        )
        # numbers, not a tensor: Trainer would round that to the model's dtype
        weights = torch.tensor(inputs["weights"], device=losses.device)[:, 1:]
        loss = torch.dot(losses, weights[:, scored].flatten())
        if not torch.isfinite(loss):
            named = ", ".join(id_ for id_ in inputs["record_ids"] if id_)
            raise UserError(
                f"finetune: the loss is {loss.item()} on records {named}; lower finetune.learning_rate, or look at them"
            )
        self.step_loss = self.step_loss + loss.detach().cpu()
        # DeepSpeed averages gradients over the processes; the step's loss is their sum
        return loss.mul(self.args.world_size)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights that are whole in every process are saved as they are; ZeRO-3 gathers them first.

        The library's way through DeepSpeed's state dict would clone tied weights, and save them twice.
        """
        if self.accelerator.deepspeed_plugin.zero_stage == 3:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir)


def clip_before_steps(optimizer: torch.optim.Optimizer, norm: float) -> None:
    """Scale gradients down to `norm` before every step, and leave their norm where DeepSpeed looks for it.

    Its ZeRO optimizers do so; a plain optimizer, under ZeRO-0 in float32, is clipped by DeepSpeed without a word.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def clip(*_: Any) -> None:
        optimizer._global_grad_norm = torch.nn.utils.clip_grad_norm_(weights, norm)  # type: ignore[attr-defined]

    optimizer.register_step_pre_hook(clip)


class Watch(TrainerCallback):
    """Writes a line for every optimizer step, says when a checkpoint is whole, and moves the progress bar."""

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        before: int,
        scratch: Path | None,
        advance: Any,
        clip_norm: float | None,
    ) -> None:
        """`before`: optimizer steps of the iterations before; `scratch`: where to write, in the first process only;
        `clip_norm`: None where DeepSpeed clips.
        """
        self.steps = 0
        self.trainer: IterationTrainer | None = None
        batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
        self._tokens = [sum(len(example.ids) for example in batch if example.weight) for batch in batches]
        self._before = before
        self._scratch = scratch
        self._advance = advance
        self._clip_norm = clip_norm
        self._began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **rest: Any
    ) -> None:
        state.save_steps = args.save_steps  # Trainer takes it from the checkpoint that it goes on from
        if self._clip_norm is not None:
            clip_before_steps(optimizer.optimizer, self._clip_norm)

    def on_step_begin(self, *arguments: Any, **rest: Any) -> None:
        self._began = time.monotonic()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **rest: Any
    ) -> None:
        if "learning_rate" not in logs:
            return
        assert self.trainer
        loss = self.trainer.step_loss
        self.trainer.step_loss = torch.zeros(())
        if args.world_size > 1:
            torch.distributed.all_reduce(loss)
        seconds, tokens = time.monotonic() - self._began, self._tokens[self.steps]
        self.steps += 1
        if self._scratch is None:
            return
        training_state.append_step(
            self._scratch,
            {
                "step": state.global_step,  # over all iterations, from 1
                "loss": loss.item(),  # nats, as the parameter finetune.loss averages it
                "learning_rate": logs["learning_rate"],
                # before clipping; a configuration of DeepSpeed's may leave it out
                "gradient_norm": float(logs.get("grad_norm", math.nan)),
                "tokens_per_second": tokens / seconds,
                "seconds": seconds,
            },
        )
        self._advance(1)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every process has written its part
        if self._scratch is not None:
            checkpoint = self._scratch / f"checkpoint-{state.global_step}"
            training_state.complete(checkpoint, state.global_step - self._before)
