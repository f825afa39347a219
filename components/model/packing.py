"""Packed texts: several in one row, one after the other, with attention computed text by text, so nothing is padded.

Scoring and training both use it, through transformers' own interface for attention functions. Whether an architecture
allows it is tested on the model first (`matches_separate_passes`); where it does not, texts are padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PACKED = "iterit_packed"  # the name under which transformers finds this attention function


class UnpackableError(Exception):
    """The model's attention is more than causal: its texts must be padded instead."""


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Make the model's layers use packed attention in the block.

    Its forward pass then takes `iterit_lengths` (of the texts) and position ids. Where all texts share a prefix that is
    not in the row, it also takes `iterit_layers` (keys and values of each layer over the prefix) and `iterit_mask` (the
    attention mask of the longest text over the prefix and itself).
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, _attend_per_text)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(PACKED)
        yield
    finally:
        model.set_attn_implementation(before)


def matches_separate_passes(model: Any, separate: Sequence[Any], packed: Callable[[], Any]) -> bool:
    """Whether packed texts give the states (or logits) that separate forward passes give.

    `separate`: a tensor per text, its first dimension the positions; the texts must differ in length. `packed`: returns
    one tensor for the positions of all texts; it is called within `packed_attention`.
    """
    import torch

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return False  # texts shorter than the window would not show the difference
    try:
        with packed_attention(model):
            actual = packed()
    except Exception:  # noqa: BLE001  an architecture's own code may fail in any way; padded texts always work
        return False
    return close(torch.cat(list(separate)), actual)


def close(expected: Any, actual: Any, tolerance: float | None = None) -> bool:
    """Whether two tensors are the same but for rounding, by the norm of their difference relative to `expected`."""
    import torch

    if expected.shape != actual.shape:
        return False
    tolerance = tolerance or (1e-3 if expected.dtype == torch.float32 else 5e-2)
    distance = (expected.float() - actual.float()).norm()
    return bool(distance <= tolerance * expected.float().norm())  # false for nan, too


def _attend_per_text(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    iterit_lengths: Sequence[int] | None = None,
    iterit_layers: Sequence[tuple[Any, Any]] | None = None,
    iterit_mask: Any = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_rest: Any,
) -> tuple[Any, None]:
    """Causal attention within each text, and to the prefix. Query, key and value: (1, heads, positions, width)."""
    import torch

    if iterit_lengths is None:
        raise UnpackableError("the layers do not pass additional arguments on to the attention function")
    if sliding_window is not None or softcap is not None or attention_mask is not None:
        raise UnpackableError("the attention has a window, a cap or a mask")
    lengths = list(iterit_lengths)
    attended = []
    # split, not slices: the gradient of a slice is as large as the whole row
    for queries, keys, values in zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True):
        if iterit_layers is not None:
            prefix_keys, prefix_values = iterit_layers[module.layer_idx]
            keys, values = torch.cat([prefix_keys, keys], dim=2), torch.cat([prefix_values, values], dim=2)
        attended.append(
            torch.nn.functional.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=iterit_mask[: queries.shape[2], : keys.shape[2]] if iterit_layers is not None else None,
                dropout_p=dropout,
                is_causal=iterit_layers is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None
