"""`contamination`: training records that share a run of words with the holdout or with a benchmark."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.core.settings.block import Block


class ContaminationSettings(Block):
    ngram: Annotated[int, Field(ge=2)] = 13
    """Number of consecutive words that two texts must share."""
    exclude: bool = False
    """Take such records out of the pool, as kind `contaminated` of data/duplicates.parquet."""
