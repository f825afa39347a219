"""Texts that lie one after the other in a single row, so that nothing is padded: attention goes text by text.

Reading and training share it. It goes through transformers' own interface for attention functions, and whether an
architecture allows it is tried on the model first (`matches_separate_passes`): where it does not, texts are padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PACKED = "iterit_packed"  # name of our attention among those of transformers


class UnpackableError(Exception):
    """A model's attention is more than causal: its texts are padded, not packed."""


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Lets the model's layers call our attention; its forward pass needs `iterit_lengths` then, and position ids.

    With `iterit_layers` (keys and values of each layer over an opening that all texts share) and `iterit_mask` (of the
    longest text, over the opening and itself) attention goes to the opening as well.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, _attend_per_text)
    before = model.config._attn_implementation
    model.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def matches_separate_passes(model: Any, alone: Sequence[Any], together: Callable[[], Any]) -> bool:
    """Whether texts in one row give the states (or logits) that each of them gives `alone`.

    The texts must differ in length. `alone`: a tensor a text, its first dimension the positions; `together`: makes one
    for the positions of all.
    """
    import torch

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return False  # short texts would not show it
    try:
        with packed_attention(model):
            found = together()
    except UnpackableError:
        return False
    except TypeError as error:  # a forward pass that takes no arguments but its own
        if "iterit_" not in str(error):
            raise
        return False
    return close(torch.cat(list(alone)), found)


def close(expected: Any, actual: Any, tolerance: float | None = None) -> bool:
    """Whether two tensors are the same but for rounding, by the norm of their difference."""
    import torch

    if expected.shape != actual.shape:
        return False
    tolerance = tolerance or (1e-3 if expected.dtype == torch.float32 else 5e-2)
    distance = (expected.float() - actual.float()).norm()
    return bool(distance <= tolerance * expected.float().norm())  # false for nan too


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
    """Causal attention within each text, and to the opening; query, key and value: (1, heads, positions, width)."""
    import torch

    if iterit_lengths is None:
        raise UnpackableError("layers that do not hand our arguments down")
    if sliding_window is not None or softcap is not None or attention_mask is not None:
        raise UnpackableError("a window, a cap or a mask, which this attention does not know")
    lengths = list(iterit_lengths)
    attended = []
    # split, not slices: a slice's gradient is as large as the whole row
    for queries, keys, values in zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True):
        if iterit_layers is not None:
            opening_keys, opening_values = iterit_layers[module.layer_idx]
            keys, values = torch.cat([opening_keys, keys], dim=2), torch.cat([opening_values, values], dim=2)
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
