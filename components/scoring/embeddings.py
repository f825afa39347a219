"""The embedding of a record, as RDS+ has it (arXiv 2503.01807): a weighted mean of the model's last hidden states.

    embedding = sum over i of i h_i / sum over i of i        i = 1 .. n: the tokens of the whole conversation

scaled to length 1. h_i is the state that the output layer reads; later tokens have seen more of the text, so they
weigh more (SGPT, arXiv 2202.08904). One forward pass a record. The conversation is that which is scored: the chat
template applied to it, cut after score.max_length tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.core.settings.score import ScoreSettings
from components.data.embeddings import Matrix
from components.data.records import Record
from components.model.packing import packed_attention
from components.scoring.ifd import UNTIMED, encode_pairs, windows
from components.scoring.losses import Scorer, Text, final_states, split_by_length, split_by_tokens
from components.scoring.store import EmbeddingStore, pair_key


@dataclass(frozen=True, slots=True)
class EmbeddedWindow:
    """Some records with their texts, and the embeddings of those that have something to score."""

    records: list[Record]
    pairs: list[tuple[Text, Text]]
    embeddings: Matrix
    """Shape (scorable records, width)."""

    @property
    def ids(self) -> list[str]:
        """Of the scorable records."""
        return [record.id for record, (text, _) in zip(self.records, self.pairs, strict=True) if text.scored]


def embed_windows(
    records: Iterable[Record],
    tokenizer: Any,
    load: Callable[[], Scorer],
    store: EmbeddingStore,
    settings: ScoreSettings,
    *,
    every: slice = slice(None),
    advance: Callable[[int], object] = lambda _: None,
    arithmetic: AbstractContextManager[object] = UNTIMED,
) -> Iterator[EmbeddedWindow]:
    """The windows of the records that `every` names, in their order.

    What is in the store is not computed again; `load` is called when a model is needed for the first time. `advance` is
    called with the number of records just finished; `arithmetic` is entered while the model computes.
    """
    scorer: Scorer | None = None
    for window in itertools.islice(windows(records), every.start, every.stop, every.step):
        pairs = encode_pairs(
            window, tokenizer, max_length=settings.max_length, system=settings.system, template=settings.template
        )
        texts = [text for text, _ in pairs if text.scored]
        keys = [pair_key(pair) for pair in pairs]
        embeddings = store.find(keys) if texts else np.empty((0, 0), np.float32)
        if embeddings is None:
            scorer = scorer or load()
            with arithmetic:
                embeddings = embed_texts(texts, scorer, batch_tokens=settings.batch_tokens)
            store.add(keys, embeddings)
        advance(len(window))
        yield EmbeddedWindow(window, pairs, embeddings)


def embed_texts(texts: Sequence[Text], scorer: Scorer, *, batch_tokens: int) -> Matrix:
    """The embeddings of texts, at least one, of any length: shape (texts, width), rows of length 1."""
    import torch

    order = sorted(range(len(texts)), key=lambda index: (-len(texts[index].ids), index))
    lengths = [len(texts[index].ids) for index in order]
    split = split_by_tokens if scorer.packed else split_by_length
    rows: dict[int, Any] = {}
    with torch.inference_mode(), packed_attention(scorer.model) if scorer.packed else nullcontext():
        for part in split(lengths, batch_tokens):
            batch = order[part]
            for index, states in zip(batch, final_states([texts[index].ids for index in batch], scorer), strict=True):
                rows[index] = pool_states(states)
    means = torch.stack([rows[index] for index in range(len(texts))])
    return torch.nn.functional.normalize(means, dim=1).float().cpu().numpy()


def pool_states(states: Any) -> Any:
    """The mean of states, shape (tokens, width), with weights 1, 2, 3, ...: float64, shape (width,)."""
    import torch

    weights = torch.arange(1, len(states) + 1, dtype=torch.float64, device=states.device)
    return (weights / weights.sum()) @ states.double()
