"""Useful floating-point operations of a model, and the rate of matrix products (GEMM) to compare their rate with.

Useful are 2 operations per weight and token of the model's body in a forward pass, and of the output layer at scored
positions only; a backward pass costs twice the forward pass. Attention's own products are not counted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
GEMM_SECONDS = 0.5


def measure_gemm(device: str, dtype: str) -> float:
    """Operations per second of square matrix products, the best within GEMM_SECONDS: the peak of this process."""
    import torch

    size = GEMM_SIZE[device]
    left, right = (torch.ones(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    best, deadline = float("inf"), time.perf_counter() + GEMM_SECONDS
    with torch.inference_mode():
        while time.perf_counter() < deadline:
            started = time.perf_counter()
            torch.mm(left, right)
            if device == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Weights that a forward pass multiplies with: those of the model's body, and those of its output layer."""

    body: int
    head: int

    def forward_operations(self, tokens: int, scored: int) -> int:
        """Useful operations of a forward pass over `tokens`, with the output layer at `scored` of them."""
        return 2 * (self.body * tokens + self.head * scored)


def size_of(model: Any) -> ModelSize:
    """The size of a loaded model."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    body = sum(weight.numel() for weight in model.parameters() if weight is not embedding and weight is not head)
    return ModelSize(body, head.numel())


def read_size(folder: Path) -> ModelSize:
    """The size of the model in a folder, from its configuration alone: no weight is read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return size_of(AutoModelForCausalLM.from_config(config, trust_remote_code=False))


def forward_operations(model: Any, tokens: int, scored: int) -> int:
    """ModelSize.forward_operations of a loaded model."""
    return size_of(model).forward_operations(tokens, scored)
