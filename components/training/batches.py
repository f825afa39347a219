"""The batches of a training: the records in each, their weights in the loss, and the model's input tensors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device

from components.model.chat import Encoded
from components.model.packing import matches_separate_passes

IGNORED = -100  # label of a position outside the response


@dataclass(frozen=True, slots=True)
class Example:
    """A record as the model sees it."""

    id: str
    ids: list[int]
    """Token ids."""
    start: int
    """First position of the response."""
    weight: float
    """Weight of each response token in the loss of the effective batch; 0 for filling."""


def effective_batches(
    ids: Sequence[str], texts: Sequence[Encoded], *, batch_size: int, loss: str, seed: int, iteration: int
) -> list[Example]:
    """The subset in training order, a multiple of `batch_size` long; examples of weight 0 fill the last batch.

    Seed and iteration determine the order. Within an effective batch, where the order changes only the speed, the
    longest records come first, so that records of similar length are padded together.
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


def balance_micro_batches(examples: Sequence[Example], batch_size: int, micro_batch_size: int) -> list[Example]:
    """Distribute the examples of each effective batch to its micro batches, alternately forward and backward.

    This gives packed rows similar lengths. The longest row decides how much memory a training needs, and how long the
    other processes wait.
    """
    balanced: list[Example] = []
    micro_batches = batch_size // micro_batch_size
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        rounds = [batch[first : first + micro_batches] for first in range(0, batch_size, micro_batches)]
        rounds[1::2] = [forward[::-1] for forward in rounds[1::2]]
        balanced += [example for row in zip(*rounds, strict=True) for example in row]
    return balanced


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """One row per record, padded on the right: tensors of shape (examples, longest), the mask made from lengths."""
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
    """All records packed into a single row (components/model/packing.py): tensors of shape (1, tokens)."""
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
    """Token ids, labels (the response's ids, IGNORED elsewhere), and the weight of each label in the loss."""
    ids = torch.tensor(example.ids + [0] * padding)
    labels, weights = torch.full_like(ids, IGNORED), torch.zeros(len(ids))
    response = slice(example.start, len(example.ids))
    labels[response], weights[response] = ids[response], example.weight
    return ids, labels, weights


def supports_packing(model: Any) -> bool:
    """Whether this model gives packed records the logits of separate ones; tested with two short ones."""
    model.eval()  # turns dropout off; Trainer turns it on again
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = [token % vocabulary for token in range(13)]
    examples = [Example("", part, 1, 0.0) for part in (ids[:5], ids[5:])]

    def centered_logits(batch: dict[str, Any]) -> Any:
        logits = model(**model_inputs(send_to_device(batch, model.device)), use_cache=False).logits[0]
        return logits - logits.mean(dim=-1, keepdim=True)  # a constant added to all logits would hide a difference

    with torch.no_grad():
        separate = [centered_logits(collate([example])) for example in examples]
        return matches_separate_passes(model, separate, lambda: centered_logits(collate_packed(examples)))


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The entries of a collated batch that the model's forward pass takes."""
    names = ("input_ids", "attention_mask", "position_ids", "iterit_lengths")
    return {name: batch[name] for name in names if name in batch}
