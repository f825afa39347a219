"""`score`: which texts are scored, and how."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, field_validator

from components.core.settings.block import Block, PositiveInt, Share


class ScoreSettings(Block):
    model: Literal["current", "base", "proxy", "none"] = "current"
    """Which model scores: the model as trained so far, the base model, proxy_model; none: losses are not computed."""
    measure: Literal["complexity", "embedding"] = "complexity"
    """What it computes: the complexity, by two forward passes a record; or the embedding, by one, for strategy rds+."""
    system: str = "You are a helpful assistant."
    """System message for records that have none; empty for none at all."""
    template: Literal["chat", "none"] = "chat"
    """chat: the tokenizer's chat template. none: plain text."""
    template_date: str | None = None
    """Date that a chat template with a clock (strftime_now) writes, as quoted text: "2024-07-26"."""
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

    @field_validator("template_date")
    @classmethod
    def is_date(cls, value: str | None) -> str | None:
        try:
            if value is None or date.fromisoformat(value).isoformat() == value:
                return value
        except ValueError:
            pass
        raise ValueError(f"{value!r} is no date of the form YYYY-MM-DD")
