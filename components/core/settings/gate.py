"""`gate`: when a new version becomes the champion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.core.settings.block import Block


class GateSettings(Block):
    metrics: Annotated[list[Literal["loss", "perplexity", "mean_complexity"]], Field(min_length=1)] = ["loss"]
    """On the holdout, lower is better; a challenger must beat the champion in each."""
    margin: float = Field(default=0.0, ge=0)
    """By more than this."""
    register_: Literal["last", "best"] = Field(default="last", alias="register")
    """Which checkpoint is registered: of the last iteration, or the best by the first of the metrics."""
