"""`score`: which texts are scored, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.core.settings.block import Block, PositiveInt, Share


class ScoreSettings(Block):
    system: str = "You are a helpful assistant."
    """System message for records that have none; empty for none at all."""
    template: Literal["chat", "none"] = "chat"
    """chat: the tokenizer's chat template. none: plain text."""
    max_length: Annotated[int, Field(ge=8)] = 512
    """Maximum tokens; longer texts are truncated."""
    batch_tokens: PositiveInt = 2048
    """Tokens per batch, padding included. It changes speed, not scores."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and activations of the model; the loss itself is always float32."""
    processes: PositiveInt = 1
    """Number of processes that score, one per GPU; the stage starts the launcher itself."""
    max_misaligned_share: Share = 0.5
    """The stage fails when a larger share is misaligned or unscorable: a sign of a wrong chat template."""
