"""The mean loss of texts under a model, each over its scored positions, in nats per token.

Four shortcuts make it fast (`make bench` measures them): texts are packed into one row, so nothing is padded; the
output layer is computed at scored positions only; it is computed for a few positions at a time; and the keys and values
of the prefix that all texts share (the template's system message and headers) are computed once. None of them changes a
loss by more than rounding. Each is tested on the model first, and not used where the architecture does not allow it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from components.data.records import Message, make_record
from components.model.chat import Encoded, common_prefix_length, encode_conditional, encode_unconditional
from components.model.packing import close, matches_separate_passes, packed_attention

SHORTEST_PREFIX = 8  # tokens; a shorter one is not worth a cache
LOGITS_AT_ONCE = 128  # positions; 128 x 49,152 float32 logits are 25 MB, which still fits the last-level cache
WHOLE_LOGITS_BYTES = 2**29  # limit of a batch's logits where the output layer cannot be called separately


@dataclass(frozen=True, slots=True)
class Text:
    """A text to score: token ids up to the last scored position, of which those from `start` on are scored."""

    ids: list[int]
    start: int
    problem: str | None = None
    """Why nothing is scored."""

    @property
    def scored(self) -> int:
        """Number of scored positions."""
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Token ids that texts of one kind begin with, and each layer's attention keys and values over them."""

    ids: list[int]
    layers: tuple[tuple[Any, Any], ...]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A model, and the shortcuts that its architecture allows."""

    model: Any
    prefixes: tuple[SharedPrefix, ...]
    separable_head: bool
    """The output layer alone maps the final states to the logits; false where these are then scaled or capped."""
    packed: bool
    """Attention can be computed text by text in a packed row; false with sliding windows, for example."""


def make_scorer(model: Any, tokenizer: Any, *, system: str, template: str) -> Scorer:
    """Find the prefixes that texts share, and the shortcuts that this architecture allows, by testing them."""
    import torch

    # two records that share nothing but the template
    probes = [make_record("probe", [Message("user", text), Message("assistant", text)]) for text in ("A b", "1 2")]
    kinds = (
        encode_conditional(probes, tokenizer, system=system, template=template),
        encode_unconditional(probes, tokenizer, template=template),
    )
    if any(text.problem for texts in kinds for text in texts):
        return Scorer(model, (), separable_head=False, packed=False)  # no texts to test with
    with torch.inference_mode():
        prefixes = [_attempt(partial(_find_shared_prefix, model, *texts)) for texts in kinds]
        separable_head = bool(_attempt(partial(_has_separable_head, model, kinds[0][0].ids)))
        packed = separable_head and all(
            _attempt(partial(_supports_packing, model, texts, prefix))
            for texts, prefix in zip(kinds, prefixes, strict=True)
        )
    return Scorer(model, tuple(prefix for prefix in prefixes if prefix), separable_head, packed)


def _attempt(shortcut: Callable[[], Any]) -> Any:
    """The result of testing a shortcut; None where it fails in the architecture's own code, in whatever way."""
    try:
        return shortcut()
    except Exception:  # noqa: BLE001  recurrent models, caches of another form: the plain way is always there
        return None


def _find_shared_prefix(model: Any, first: Encoded, second: Encoded) -> SharedPrefix | None:
    from transformers.cache_utils import DynamicLayer

    # the state of the token before the response predicts its first token, so it is computed for each text
    shared = min(common_prefix_length(first.ids, second.ids), first.start - 1, second.start - 1)
    ids = first.ids[: max(shared, 0)]
    if len(ids) < SHORTEST_PREFIX:
        return None
    cache = model.base_model(input_ids=_tensor([ids], model), use_cache=True).past_key_values
    if cache is None or any(type(layer) is not DynamicLayer for layer in getattr(cache, "layers", [None])):
        return None  # sliding windows and recurrent states are not plain keys and values
    prefix = SharedPrefix(ids, tuple((layer.keys, layer.values) for layer in cache.layers))
    whole = model.base_model(input_ids=_tensor([first.ids], model), use_cache=False).last_hidden_state[:, len(ids) :]
    rest = _states(model, _tensor([first.ids[len(ids) :]], model), prefix)
    return prefix if close(whole, rest) else None


def _has_separable_head(model: Any, ids: list[int]) -> bool:
    head = model.get_output_embeddings()
    if head is None:
        return False
    batch = _tensor([ids], model)
    logits = model(input_ids=batch, use_cache=False).logits
    return close(logits, head(model.base_model(input_ids=batch, use_cache=False).last_hidden_state), 1e-4)


def _supports_packing(model: Any, texts: Sequence[Encoded], prefix: SharedPrefix | None) -> bool:
    """Whether two texts of different lengths, packed into one row, have the states of separate passes."""
    skipped = len(prefix.ids) if prefix else 0
    rows = [text.ids[skipped:] for text in texts]
    rows[1] = [*rows[1], *rows[0]]  # longer than the first
    separate = [_states(model, _tensor([row], model), prefix)[0] for row in rows]
    return matches_separate_passes(model, separate, lambda: _packed_states(model, rows, prefix))


def _tensor(rows: Sequence[Sequence[int]] | Sequence[int], model: Any) -> Any:
    import torch

    # a copy from pinned memory to the GPU does not wait for the work in progress there
    return torch.tensor(rows, dtype=torch.long, pin_memory=model.device.type == "cuda").to(
        model.device, non_blocking=True
    )


def measure_pairs(
    pairs: Sequence[tuple[Text, Text]],
    scorer: Scorer,
    *,
    batch_tokens: int,
    advance: Callable[[int], object] = lambda _: None,
) -> npt.NDArray[np.float64]:
    """Mean loss of both texts of each pair in nats per token, shape (pairs, 2); nan where nothing is scored.

    `advance` is called with the number of pairs that were just finished.
    """
    import torch

    texts = [text for pair in pairs for text in pair]
    losses = np.full(len(texts), np.nan)
    remaining = np.fromiter((2 if pair[0].scored else 0 for pair in pairs), int, len(pairs))  # texts of each pair
    advance(int((remaining == 0).sum()))
    results = []
    with torch.inference_mode(), packed_attention(scorer.model) if scorer.packed else nullcontext():
        for prefix, batch in _make_batches(texts, scorer, batch_tokens):
            results.append((batch, _mean_losses([texts[index] for index in batch], scorer, prefix)))
            finished = 0
            for index in batch:
                remaining[index // 2] -= 1
                finished += int(remaining[index // 2] == 0)
            advance(finished)
    for batch, means in results:  # only now, because copying a result from a GPU waits for all work in progress there
        losses[batch] = means.cpu().numpy()
    return losses.reshape(-1, 2)


def final_states(rows: Sequence[Sequence[int]], scorer: Scorer) -> list[Any]:
    """The final states of each row of token ids, from one forward pass: a tensor of shape (tokens, width) per row.

    A scorer that packs is called within `packed_attention`. Its prefixes are not used.
    """
    if scorer.packed:
        return list(_packed_states(scorer.model, rows, None).split([len(row) for row in rows]))
    states = _states(scorer.model, _pad(rows, scorer.model), None)
    return [states[number, : len(row)] for number, row in enumerate(rows)]


def _make_batches(
    texts: Sequence[Text], scorer: Scorer, batch_tokens: int
) -> list[tuple[SharedPrefix | None, list[int]]]:
    """Indices of the texts of each batch, with their prefix; `batch_tokens` at most, padding included."""
    if not scorer.separable_head:
        rows = WHOLE_LOGITS_BYTES // (4 * scorer.model.config.get_text_config().vocab_size)
        batch_tokens = min(batch_tokens, max(rows, 1))
    groups: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        if text.scored:
            groups.setdefault(_prefix_of(text, scorer.prefixes), []).append(index)
    batches = []
    for number, indices in sorted(groups.items()):
        prefix = scorer.prefixes[number] if number >= 0 else None
        skipped = len(prefix.ids) if prefix else 0
        indices.sort(key=lambda index: (-len(texts[index].ids), index))
        lengths = [len(texts[index].ids) - skipped for index in indices]
        split = split_by_tokens if scorer.packed else split_by_length
        batches += [(lengths[part.start], prefix, indices[part]) for part in split(lengths, batch_tokens)]
    # longest first, so that a batch too large for the memory fails at once
    batches.sort(key=lambda batch: -batch[0])
    return [(prefix, indices) for _, prefix, indices in batches]


def _prefix_of(text: Text, prefixes: Sequence[SharedPrefix]) -> int:
    """Number of the longest prefix that the text begins with and that leaves a token before the response, or -1."""
    fitting = (
        number
        for number, prefix in enumerate(prefixes)
        if len(prefix.ids) < text.start and text.ids[: len(prefix.ids)] == prefix.ids
    )
    return max(fitting, key=lambda number: len(prefixes[number].ids), default=-1)


def split_by_tokens(lengths: Sequence[int], batch_tokens: int) -> Iterator[slice]:
    """Split falling lengths into batches without padding, of `batch_tokens` at most or of a single text."""
    first = total = 0
    for last, length in enumerate(lengths):
        if last > first and total + length > batch_tokens:
            yield slice(first, last)
            first, total = last, 0
        total += length
    if lengths:
        yield slice(first, len(lengths))


def split_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[slice]:
    """Split falling lengths into batches with little padding, of `batch_tokens` at most or of a single text.

    A batch that is at least a quarter full ends before a text of which more than a sixth would be padding.
    """
    first = 0
    for last in range(1, len(lengths) + 1):
        longest, count = lengths[first], last - first
        if (
            last == len(lengths)
            or (count + 1) * longest > batch_tokens
            or (4 * count * longest >= batch_tokens and 6 * lengths[last] < 5 * longest)
        ):
            yield slice(first, last)
            first = last


def _mean_losses(texts: Sequence[Text], scorer: Scorer, prefix: SharedPrefix | None) -> Any:
    """Mean loss of each text, from one forward pass: float64, shape (texts,), on the model's device."""
    import torch

    model = scorer.model
    skipped = len(prefix.ids) if prefix else 0
    rows = [text.ids[skipped:-1] for text in texts]  # the last token is predicted, but predicts nothing
    positions = _predicting_positions(texts, rows, skipped, packed=scorer.packed).to(model.device, non_blocking=True)
    targets = _tensor([token for text in texts for token in text.ids[text.start :]], model)
    if scorer.packed:
        losses = _losses_of_states(model, _packed_states(model, rows, prefix)[positions], targets)
    elif scorer.separable_head:
        states = _states(model, _pad(rows, model), prefix).flatten(0, 1)
        losses = _losses_of_states(model, states[positions], targets)
    else:
        cache = _make_cache(prefix, len(texts))
        logits = model(input_ids=_pad(rows, model), **_cache_arguments(cache)).logits
        losses = _losses_of_logits(logits.flatten(0, 1)[positions], targets)
    counts = torch.tensor([text.scored for text in texts], device=losses.device)
    return torch.segment_reduce(losses.double(), "mean", lengths=counts)


def _predicting_positions(texts: Sequence[Text], rows: Sequence[Sequence[int]], skipped: int, *, packed: bool) -> Any:
    """Positions whose states predict the scored tokens, text by text, in all `rows` one after the other."""
    import torch

    if packed:
        offsets = np.cumsum([0, *(len(row) for row in rows[:-1])])
    else:
        offsets = np.arange(len(rows)) * max(len(row) for row in rows)
    return torch.cat(
        [
            torch.arange(text.start - 1, len(text.ids) - 1) + (int(offset) - skipped)
            for text, offset in zip(texts, offsets, strict=True)
        ]
    )


def _losses_of_states(model: Any, states: Any, targets: Any) -> Any:
    """Loss at each state, shape (positions,), with the logits of a few positions in memory at a time."""
    import torch

    head = model.get_output_embeddings()
    parts = [slice(first, first + LOGITS_AT_ONCE) for first in range(0, len(targets), LOGITS_AT_ONCE)]
    return torch.cat([_losses_of_logits(head(states[part]), targets[part]) for part in parts])


def _losses_of_logits(logits: Any, targets: Any) -> Any:
    """-log p(target) in nats, float32."""
    import torch

    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def _pad(rows: Sequence[Sequence[int]], model: Any) -> Any:
    """Pad on the right. No attention mask is needed, because a causal model's state does not depend on what follows.

    Without a mask no end-of-turn token that doubles as padding can be masked.
    """
    longest = max(len(row) for row in rows)
    return _tensor([[*row, *[0] * (longest - len(row))] for row in rows], model)


def _states(model: Any, batch: Any, prefix: SharedPrefix | None) -> Any:
    """Final states of the model's body, shape (texts, positions, width)."""
    cache = _make_cache(prefix, len(batch))
    return model.base_model(input_ids=batch, **_cache_arguments(cache)).last_hidden_state


def _packed_states(model: Any, rows: Sequence[Sequence[int]], prefix: SharedPrefix | None) -> Any:
    """Final states of the texts in `rows`, packed into a single row: shape (positions of all, width)."""
    import torch

    skipped = len(prefix.ids) if prefix else 0
    ids = _tensor([[token for row in rows for token in row]], model)
    positions = torch.cat([torch.arange(skipped, skipped + len(row)) for row in rows])[None].to(model.device)
    mask = None  # attention without a prefix is causal, and needs none
    if prefix is not None:  # of the longest text; the mask of a shorter one is its upper left corner
        longest = max(len(row) for row in rows)
        mask = torch.ones(longest, skipped + longest, dtype=torch.bool, device=model.device).tril(skipped)
    return model.base_model(
        input_ids=ids,
        position_ids=positions,
        use_cache=False,
        iterit_lengths=[len(row) for row in rows],
        iterit_layers=prefix.layers if prefix else None,
        iterit_mask=mask,
    ).last_hidden_state[0]


def _cache_arguments(cache: Any) -> dict[str, Any]:
    """Arguments of a forward pass; a recurrent model's takes no `past_key_values`."""
    return {"use_cache": False} if cache is None else {"past_key_values": cache, "use_cache": True}


def _make_cache(prefix: SharedPrefix | None, texts: int) -> Any:
    """The prefix's keys and values for a batch of `texts`."""
    from transformers import DynamicCache

    if prefix is None:
        return None
    # views are enough: the cache copies them when it appends
    return DynamicCache(
        [(keys.expand(texts, -1, -1, -1), values.expand(texts, -1, -1, -1)) for keys, values in prefix.layers]
    )
