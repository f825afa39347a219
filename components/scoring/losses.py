"""Reads texts with a model: the mean loss of each over its scored positions, in nats per token.

What makes it fast (`make bench` measures it): the texts of a batch lie one after the other in a single row, so that
nothing is padded, and attention goes text by text; the output layer is computed at scored positions only, a few at a
time; the template's opening (system message and all) is computed once and reused as keys and values. None of it
changes a text's loss by more than rounding, and each short cut is tried on the model first: where an architecture does
not allow it, the plain way is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from components.data.records import Message, make_record
from components.model.chat import Encoded, encode_conditional, encode_unconditional
from components.model.packing import close, matches_separate_passes, packed_attention

SHORTEST_OPENING = 8  # tokens; a shorter one is not worth a cache


LOGITS_AT_ONCE = 128  # positions; 128 x 49,152 float32 logits are 25 MB, which still fits the last-level cache


WHOLE_LOGITS_BYTES = 2**29  # where the output layer cannot be called on its own


@dataclass(frozen=True, slots=True)
class Text:
    """One text to read: `ids` up to the last scored position, of which those from `start` on are scored."""

    ids: list[int]
    start: int

    @property
    def scored(self) -> int:
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Token ids that texts of one kind begin with, and the attention keys and values of each layer over them."""

    ids: list[int]
    layers: tuple[tuple[Any, Any], ...]


@dataclass(frozen=True, slots=True)
class Reader:
    """A model, ready to read texts."""

    model: Any
    openings: tuple[SharedPrefix, ...]
    separable_head: bool
    """The output layer alone turns the body's states into the model's logits (not so where these are scaled or
    capped afterwards)."""
    packed: bool
    """Attention can go text by text over texts that lie in one row (not so with sliding windows, or without the
    interface of transformers)."""


def make_reader(model: Any, tokenizer: Any, *, system: str, template: str) -> Reader:
    """Finds what the texts have in common, and which of the short cuts this architecture allows, by trying them."""
    import torch

    # two records that share nothing but the template
    probes = [make_record("probe", [Message("user", text), Message("assistant", text)]) for text in ("A b", "1 2")]
    kinds = (
        encode_conditional(probes, tokenizer, system=system, template=template),
        encode_unconditional(probes, tokenizer, template=template),
    )
    with torch.inference_mode():
        openings = [_find_shared_prefix(model, first, second) for first, second in kinds]
        separable_head = _has_separable_head(model, kinds[0][0].ids)
        packed = separable_head and all(
            _reader_supports_packing(model, kind, opening) for kind, opening in zip(kinds, openings, strict=True)
        )
    return Reader(model, tuple(opening for opening in openings if opening), separable_head, packed)


def _find_shared_prefix(model: Any, first: Encoded, second: Encoded) -> SharedPrefix | None:
    from transformers.cache_utils import DynamicLayer

    pairs = enumerate(zip(first.ids, second.ids, strict=False))
    shared = next((place for place, (one, other) in pairs if one != other), min(len(first.ids), len(second.ids)))
    ids = first.ids[: min(shared, first.start - 1, second.start - 1)]
    if len(ids) < SHORTEST_OPENING:
        return None
    cache = model.base_model(input_ids=_tensor([ids], model), use_cache=True).past_key_values
    if cache is None or any(type(layer) is not DynamicLayer for layer in getattr(cache, "layers", [None])):
        return None  # sliding windows and recurrent states are not plain keys and values
    opening = SharedPrefix(ids, tuple((layer.keys, layer.values) for layer in cache.layers))
    whole = model.base_model(input_ids=_tensor([first.ids], model), use_cache=False).last_hidden_state[:, len(ids) :]
    rest = _states(model, _tensor([first.ids[len(ids) :]], model), opening)
    return opening if close(whole, rest) else None


def _has_separable_head(model: Any, ids: list[int]) -> bool:
    head = model.get_output_embeddings()
    if head is None:
        return False
    batch = _tensor([ids], model)
    whole = model(input_ids=batch, use_cache=False).logits
    return close(whole, head(model.base_model(input_ids=batch, use_cache=False).last_hidden_state), 1e-4)


def _reader_supports_packing(model: Any, texts: Sequence[Encoded], opening: SharedPrefix | None) -> bool:
    """Whether two texts of different lengths in one row give the states that each gives alone."""
    skipped = len(opening.ids) if opening else 0
    rests = [text.ids[skipped:] for text in texts]
    rests[1] = [*rests[1], *rests[0]]  # longer than the first
    alone = [_states(model, _tensor([rest], model), opening)[0] for rest in rests]
    return matches_separate_passes(model, alone, lambda: _packed_states(model, rests, opening))


def _tensor(rows: Sequence[Sequence[int]] | Sequence[int], model: Any) -> Any:
    import torch

    # from pinned memory a copy to the GPU does not wait for what the GPU is doing
    return torch.tensor(rows, dtype=torch.long, pin_memory=model.device.type == "cuda").to(
        model.device, non_blocking=True
    )


def measure_pairs(
    pairs: Sequence[tuple[Text, Text]],
    reader: Reader,
    *,
    batch_tokens: int,
    advance: Callable[[int], object] = lambda _: None,
) -> npt.NDArray[np.float64]:
    """Mean loss of both texts of each pair in nats per token, shape (pairs, 2); nan where nothing is scored."""
    import torch

    texts = [text for pair in pairs for text in pair]
    losses = np.full(len(texts), np.nan)
    unread = np.fromiter((2 if pair[0].scored else 0 for pair in pairs), int, len(pairs))
    advance(int((unread == 0).sum()))
    read = []
    with torch.inference_mode(), packed_attention(reader.model) if reader.packed else nullcontext():
        for opening, batch in _batches(texts, reader, batch_tokens):
            read.append((batch, _read([texts[position] for position in batch], reader, opening)))
            done = 0
            for position in batch:
                unread[position // 2] -= 1
                done += int(unread[position // 2] == 0)
            advance(done)
    for batch, means in read:  # not before: the GPU is asked for a result once, at the end
        losses[batch] = means.cpu().numpy()
    return losses.reshape(-1, 2)


def _batches(texts: Sequence[Text], reader: Reader, batch_tokens: int) -> list[tuple[SharedPrefix | None, list[int]]]:
    """Positions of texts that are read together: same opening, `batch_tokens` with the padding where there is any."""
    if not reader.separable_head:
        size = WHOLE_LOGITS_BYTES // (4 * reader.model.config.get_text_config().vocab_size)
        batch_tokens = min(batch_tokens, max(size, 1))
    groups: dict[int, list[int]] = {}
    for position, text in enumerate(texts):
        if text.scored:
            groups.setdefault(_opening_of(text, reader.openings), []).append(position)
    batches = []
    for number, positions in sorted(groups.items()):
        opening = reader.openings[number] if number >= 0 else None
        skipped = len(opening.ids) if opening else 0
        positions.sort(key=lambda position: (-len(texts[position].ids), position))
        lengths = [len(texts[position].ids) - skipped for position in positions]
        cut = _by_budget if reader.packed else _of_like_length
        for longest, batch in cut(lengths, batch_tokens):
            batches.append((longest, opening, positions[batch]))
    # the longest first: a batch that is too large for the memory is met at once
    batches.sort(key=lambda batch: -batch[0])
    return [(opening, positions) for _, opening, positions in batches]


def _by_budget(lengths: Sequence[int], batch_tokens: int) -> Iterator[tuple[int, slice]]:
    """Cuts falling lengths into batches of `batch_tokens` at most: each batch's longest text, and its place."""
    first = total = 0
    for last, length in enumerate(lengths):
        if last > first and total + length > batch_tokens:
            yield lengths[first], slice(first, last)
            first, total = last, 0
        total += length
    if lengths:
        yield lengths[first], slice(first, len(lengths))


def _of_like_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[tuple[int, slice]]:
    """Cuts falling lengths into batches: each batch's longest text, and its place.

    A batch holds `batch_tokens` at most, padding included, and ends early, once it is a quarter full, where the next
    text would be more than a sixth padding: 11 instead of 27 tokens of padding in 100, on instructions of all lengths.
    """
    first = 0
    for last in range(1, len(lengths) + 1):
        longest, count = lengths[first], last - first
        if (
            last == len(lengths)
            or (count + 1) * longest > batch_tokens
            or (4 * count * longest >= batch_tokens and 6 * lengths[last] < 5 * longest)
        ):
            yield longest, slice(first, last)
            first = last


def _opening_of(text: Text, openings: Sequence[SharedPrefix]) -> int:
    """Number of the longest opening that the text begins with and that leaves a token before the response, or -1."""
    fitting = (
        number
        for number, opening in enumerate(openings)
        if len(opening.ids) < text.start and text.ids[: len(opening.ids)] == opening.ids
    )
    return max(fitting, key=lambda number: len(openings[number].ids), default=-1)


def _read(texts: Sequence[Text], reader: Reader, opening: SharedPrefix | None) -> Any:
    """Mean loss of each text, one forward pass: float64, shape (texts,), on the model's device."""
    import torch

    model, skipped = reader.model, len(opening.ids) if opening else 0
    rows = [text.ids[skipped:-1] for text in texts]  # the last token is predicted, never read
    if reader.packed:
        begins = np.cumsum([0, *(len(row) for row in rows[:-1])])
    else:
        begins = np.arange(len(rows)) * max(len(row) for row in rows)
    counts = [text.scored for text in texts]
    # text by text, the place of the state that predicts each scored token
    places = torch.cat(
        [
            torch.arange(text.start - 1, len(text.ids) - 1) + (int(begin) - skipped)
            for text, begin in zip(texts, begins, strict=True)
        ]
    ).to(model.device, non_blocking=True)
    targets = _tensor([token for text in texts for token in text.ids[text.start :]], model)
    if reader.packed:
        losses = _losses(model, _packed_states(model, rows, opening)[places], targets)
    elif reader.separable_head:
        losses = _losses(model, _states(model, _padded(rows, model), opening).flatten(0, 1)[places], targets)
    else:
        cache = _cache(opening, len(texts))
        logits = model(input_ids=_padded(rows, model), past_key_values=cache, use_cache=cache is not None).logits
        losses = _loss(logits.flatten(0, 1)[places], targets)
    return torch.segment_reduce(losses.double(), "mean", lengths=torch.tensor(counts, device=losses.device))


def _losses(model: Any, states: Any, targets: Any) -> Any:
    """Loss at each state, shape (positions,): a few logits at a time."""
    import torch

    head = model.get_output_embeddings()
    places = [slice(first, first + LOGITS_AT_ONCE) for first in range(0, len(targets), LOGITS_AT_ONCE)]
    return torch.cat([_loss(head(states[place]), targets[place]) for place in places])


def _padded(rows: Sequence[Sequence[int]], model: Any) -> Any:
    """Padded on the right: a causal model's state at a position does not see what follows it, so no attention mask is
    needed, and none can mask an end-of-turn token that doubles as padding.
    """
    longest = max(len(row) for row in rows)
    return _tensor([[*row, *[0] * (longest - len(row))] for row in rows], model)


def _states(model: Any, batch: Any, opening: SharedPrefix | None) -> Any:
    """Final states of the model's body, shape (texts, positions, width)."""
    cache = _cache(opening, len(batch))
    return model.base_model(input_ids=batch, past_key_values=cache, use_cache=cache is not None).last_hidden_state


def _packed_states(model: Any, rows: Sequence[Sequence[int]], opening: SharedPrefix | None) -> Any:
    """Final states of texts that lie one after the other in a single row, shape (positions of all, width)."""
    import torch

    skipped = len(opening.ids) if opening else 0
    ids = _tensor([[token for row in rows for token in row]], model)
    positions = torch.cat([torch.arange(skipped, skipped + len(row)) for row in rows])[None].to(model.device)
    mask = None  # without an opening attention is causal, and needs none
    if opening is not None:  # of the longest text; the others' are its corners
        longest = max(len(row) for row in rows)
        mask = torch.ones(longest, skipped + longest, dtype=torch.bool, device=model.device).tril(skipped)
    return model.base_model(
        input_ids=ids,
        position_ids=positions,
        use_cache=False,
        iterit_lengths=[len(row) for row in rows],
        iterit_layers=opening.layers if opening else None,
        iterit_mask=mask,
    ).last_hidden_state[0]


def _cache(opening: SharedPrefix | None, texts: int) -> Any:
    from transformers import DynamicCache

    if opening is None:
        return None
    # views: the cache copies when it appends
    return DynamicCache(
        [(keys.expand(texts, -1, -1, -1), values.expand(texts, -1, -1, -1)) for keys, values in opening.layers]
    )


def _loss(logits: Any, targets: Any) -> Any:
    """-log p(target) in nats, float32."""
    import torch

    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
