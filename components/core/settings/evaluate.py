"""`evaluate`: sample responses, and ROUGE-L of answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.core.settings.block import Block, PositiveInt


class EvaluateSettings(Block):
    samples: Annotated[int, Field(ge=0)] = 3
    """Number of holdout records for which a response is generated, greedily."""
    sample_tokens: PositiveInt = 48
    """Maximum tokens per generated response."""
    rouge: Annotated[int, Field(ge=0)] = 0
    """Number of holdout records, the first by id, answered greedily for ROUGE-L; 0 for none: docs/method.md."""
    rouge_tokens: PositiveInt = 256
    """Maximum tokens per answer."""
