"""Loads a model folder: safetensors only, no remote code, on the GPU where there is one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from components.core.errors import UserError, first_line
from components.core.process import keep_freed_memory
from components.model.packing import close
from components.model.weights import load_weights

PROBE_TOKENS = 8  # of the text that prepacked layers are tested with
PREPACKED_ROWS = 2048  # input rows that oneDNN chooses the weights' layout for; other numbers work as well


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; needs no torch. Raises UserError when it does not give offsets."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(f"{folder}: no tokenizer that can be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(
            f"{folder}: the tokenizer has no tokenizer.json, without which the start of a response cannot be found"
        )
    return tokenizer


def load_model(folder: Path, dtype: str) -> tuple[Any, Any]:
    """The model (safetensors only, no remote code, on the GPU where there is one) and tokenizer of a model folder.

    Raises UserError when either cannot be loaded.
    """
    import torch
    from transformers.utils import logging

    keep_freed_memory()
    tokenizer = load_tokenizer(folder)
    logging.disable_progress_bar()
    model = load_weights(folder, name=str(folder), dtype=getattr(torch, dtype))
    # one GPU per process
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), tokenizer


def copy_mapped_weights(model: Any) -> None:
    """Copy the weights of a model that is to be trained from the file that they are mapped from into memory.

    The first optimizer step would do so page by page, which is slower.
    """
    if model.device.type == "cpu":
        for weight in model.parameters():
            weight.data = weight.data.clone()


def prepack_linear_layers(model: Any) -> None:
    """Convert the linear layers of a model on a CPU to oneDNN's blocked layout, which makes the forward pass faster.

    In place, and irreversible: such a model cannot be trained or saved. Results are the same but for rounding. Left
    undone where the model's code reads the weights of its layers itself, as recurrent ones do.
    """
    import torch

    if model.device.type != "cpu" or not torch._C._has_mkldnn:
        return
    probe = torch.arange(PROBE_TOKENS)[None] % model.get_input_embeddings().num_embeddings
    with torch.inference_mode():
        expected = model(input_ids=probe, use_cache=False).logits
        layers = [
            (parent, name, child)
            for parent in list(model.modules())
            for name, child in list(parent.named_children())
            if type(child) is torch.nn.Linear
        ]
        for parent, name, child in layers:
            setattr(parent, name, _prepacked(child))
        try:
            same = close(expected, model(input_ids=probe, use_cache=False).logits)
        except Exception:  # noqa: BLE001  an architecture's own code may fail in any way; plain layers always work
            same = False
    if not same:
        for parent, name, child in layers:
            setattr(parent, name, child)


def _prepacked(linear: Any) -> Any:
    import torch

    class Prepacked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PREPACKED_ROWS)
            self.bias = linear.bias

        def forward(self, states: Any) -> Any:
            return torch.ops.mkldnn._linear_pointwise(states, self.packed, self.bias, "none", [], "")

    return Prepacked()
