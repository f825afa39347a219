"""`select`: strategy and budget."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from components.core.settings.block import Block, PositiveInt, Share

WITHOUT_LOSSES = ("random", "random-fresh", "random-balanced", "longest", "facility-location", "full", "rds+")


class Quota(Block):
    min_share: Share = 0.0
    """Minimum share of the picks, as far as the source has aligned records."""
    max_share: Share = 1.0
    """Maximum share of the picks."""


class SelectSettings(Block):
    strategy: Literal[
        "iterit",
        "iterit-static",
        "superfiltering",
        "ifd",
        "random",
        "random-fresh",
        "random-balanced",
        "longest",
        "perplexity",
        "k-center",
        "facility-location",
        "deita-style",
        "rds+",
        "full",
    ] = "iterit"
    """How the subset is chosen: docs/strategies.md."""
    ratio: float | int = 0.05
    """Share of the pool (up to 1) or a whole number of records, the same in every iteration."""
    update_ratio: float = Field(default=3.0, ge=1)
    """Iterations after the first score update_ratio x k candidates again; with 1 they score the whole pool."""
    max_complexity_quantile: Share | None = None
    """Leave out aligned candidates whose complexity is above this quantile of all candidates' complexity."""
    diversity_decay: Share = 0.1
    """Factor on the weight of an n-gram after each pick that contains it."""
    tokens: PositiveInt | None = None
    """Budget of response tokens instead of `ratio`; a record that no longer fits is passed over."""
    quotas: dict[str, Quota] = Field(default_factory=dict)
    """Minimum and maximum share of the picks, by source."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of the strategies random, random-fresh and random-balanced."""
    perplexity_range: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.25, 0.75]
    """Strategy perplexity: quantiles of nll_conditional between which records are eligible."""
    max_similarity: Share = 0.9
    """Strategy deita-style: cosine with an earlier pick above which a record is left out."""

    @model_validator(mode="after")
    def quotas_can_be_met(self) -> SelectSettings:
        for source, quota in self.quotas.items():
            if quota.min_share > quota.max_share:
                raise ValueError(f"quotas.{source}: min_share {quota.min_share} is above max_share {quota.max_share}")
        least = sum(Fraction(str(quota.min_share)) for quota in self.quotas.values())
        if least > 1:
            raise ValueError(f"quotas: the min_shares add up to {float(least)}, more than 1")
        if self.quotas and self.tokens is not None:
            raise ValueError("quotas are shares of a number of records: leave select.tokens out, or the quotas")
        if self.perplexity_range[0] >= self.perplexity_range[1]:
            raise ValueError("perplexity_range: the first quantile must be below the second")
        return self

    @property
    def reads_complexity(self) -> bool:
        """Whether the picks depend on losses."""
        return self.strategy not in WITHOUT_LOSSES or self.max_complexity_quantile is not None

    @field_validator("ratio", mode="after")
    @classmethod
    def ratio_is_share_or_count(cls, value: float | int) -> float | int:
        if (isinstance(value, float) and not value.is_integer() and not 0 < value < 1) or value <= 0:
            raise ValueError(f"{value} is neither a share (0 to 1] nor a whole number of records")
        return value

    def records_per_iteration(self, pool_size: int) -> int:
        """The method's k: floor(ratio x pool size), or ratio itself when it is a number of records."""
        # the decimal number as written: 0.29 x 100 is 29, in binary it is 28.999999999999996
        return math.floor(Fraction(str(self.ratio)) * pool_size) if self.ratio <= 1 else int(self.ratio)
