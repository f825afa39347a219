"""`gate`: when a new version becomes the champion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

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
    benchmarks: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Benchmark figures by TASK/METRIC, as in general_choice/acc, with the margin by which each may be worse than the
    champion's: refused where the lower bound of the paired difference is below -margin. In the figure's unit; of a
    perplexity, in nats per word or byte."""
    register_: Literal["last", "best"] = Field(default="last", alias="register")
    """Which checkpoint is registered: that of the last iteration, or the best by the first of the metrics."""

    @field_validator("benchmarks", mode="after")
    @classmethod
    def figures_have_a_task_and_a_metric(cls, value: dict[str, float]) -> dict[str, float]:
        for figure in value:
            task, _, metric = figure.partition("/")
            if not task or not metric:
                raise ValueError(f"{figure!r} is no figure: name the task and its metric, such as general_choice/acc")
        return value

    @property
    def confidence_of_each(self) -> float:
        """One-sided confidence of a single retraining's test: Bonferroni's share of the error."""
        return 1 - (1 - self.confidence) / self.horizon
