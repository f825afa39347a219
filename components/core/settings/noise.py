"""`noise`: spoiled records in the pool, to see what a strategy makes of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.core.settings.block import Block, Share

Kind = Literal["swapped", "cut", "boilerplate", "language", "random-words", "near-copy"]


class NoiseSettings(Block):
    share: Share = 0.0
    """Share of the pool's records that are spoiled, for experiments: docs/compare.md. The holdout never is."""
    kinds: Annotated[list[Kind], Field(min_length=1)] = [
        "swapped",
        "cut",
        "boilerplate",
        "language",
        "random-words",
        "near-copy",
    ]
    """What is done to them, equally often."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of which records are spoiled, and how."""
