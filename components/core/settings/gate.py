"""`gate`: when a new version becomes the champion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.core.settings.block import Block


class GateSettings(Block):
    metrics: Annotated[list[Literal["loss", "perplexity", "mean_complexity"]], Field(min_length=1)] = ["loss"]
    """Holdout metrics, lower is better; the challenger must beat the champion in every one."""
    margin: float = Field(default=0.0, ge=0)
    """The challenger must be better by more than this."""
    register_: Literal["last", "best"] = Field(default="last", alias="register")
    """Which checkpoint is registered: that of the last iteration, or the best by the first of the metrics."""
