"""`gate`: when a new version becomes the champion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.core.settings.block import Block, PositiveInt


class GateSettings(Block):
    metrics: Annotated[list[Literal["loss", "perplexity", "mean_complexity"]], Field(min_length=1)] = ["loss"]
    """Holdout metrics, lower is better; the challenger must be better in each. Perplexity has the test of the loss."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """One-sided confidence with which the challenger must be better, record by record over the same holdout."""
    margin: float = Field(default=0.0, ge=0)
    """By how much it must be better, in nats of the loss or in mean complexity: the lower bound must be above this."""
    horizon: PositiveInt = 1
    """Over how many retrainings the error 1 - confidence is spent: each is tested at 1 - (1 - confidence) / horizon, so
    that a model that is no better is promoted by any of them with at most that probability. 52 for a year of weeks."""
    register_: Literal["last", "best"] = Field(default="last", alias="register")
    """Which checkpoint is registered: that of the last iteration, or the best by the first of the metrics."""

    @property
    def confidence_of_each(self) -> float:
        """One-sided confidence of a single retraining's test: Bonferroni's share of the error."""
        return 1 - (1 - self.confidence) / self.horizon
