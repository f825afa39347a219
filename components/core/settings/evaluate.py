"""`evaluate`: sample responses."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.core.settings.block import Block, PositiveInt


class EvaluateSettings(Block):
    samples: Annotated[int, Field(ge=0)] = 3
    """Number of holdout records for which a response is generated, greedily."""
    sample_tokens: PositiveInt = 48
    """Maximum tokens per generated response."""
