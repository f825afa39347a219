"""A score is the plain loop's, whatever the architecture: where a shortcut fails, the plain way is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.model.load import load_tokenizer, prepack_linear_layers
from components.scoring.ifd import encode_pairs
from components.scoring.losses import Text, make_scorer, measure_pairs
from components.training.batches import supports_packing
from tests.support.architectures import tiny_model
from tests.support.records import ask

SYSTEM = "You are a helpful assistant."
RECORDS = [
    ask("Name one function of the module.", "fill"),
    ask("What is the text? " * 3, "It is a text.\n\n    With an indented line, and a final one."),
    ask("Repeat it.", "text " * 20),
]
ARCHITECTURES = [
    "bloom", "deepseek_v2", "deepseek_v3", "falcon_mamba", "gemma2", "gemma3_text", "glm4_moe_lite", "gpt2", "jamba",
    "llama", "llama4_text", "mamba", "mamba2", "minimax", "mistral", "mixtral", "phi", "qwen2", "recurrent_gemma",
    "rwkv",
]  # fmt: skip


def plain_loss(model: Any, text: Text) -> float:
    """One text at a time, all logits, no cache."""
    ids = torch.tensor([text.ids])
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, text.start - 1 : -1].double()
    return float(-logits.log_softmax(-1).gather(1, ids[0, text.start :, None]).mean())


def worst_difference(model_type: str, tokenizer: Any) -> float:
    """The largest difference from the plain loop, in nats per token."""
    model = tiny_model(model_type, len(tokenizer))
    pairs = encode_pairs(RECORDS, tokenizer, system=SYSTEM, template="chat", max_length=128)
    expected = [[plain_loss(model, text) for text in pair] for pair in pairs]
    supports_packing(model)  # leaves the model as it was
    prepack_linear_layers(model)
    scorer = make_scorer(model, tokenizer, system=SYSTEM, template="chat")
    return float(np.abs(measure_pairs(pairs, scorer, batch_tokens=256) - expected).max())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_losses_are_those_of_a_plain_loop(model_type: str, small_model: Path) -> None:
    assert worst_difference(model_type, load_tokenizer(small_model)) < 1e-4
