"""`dedupe`: duplicates, holdout and the pool's size."""

from __future__ import annotations

from pydantic import Field

from components.core.settings.block import Block, PositiveInt, Share


class DedupeSettings(Block):
    same_response: bool = True
    """Remove records with the same response as another record, whatever their prompts."""
    near: bool = True
    """Remove near duplicates."""
    ngram: PositiveInt = 3
    """Words per shingle."""
    threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of word n-grams from which two records are near duplicates."""
    max_removed_share: Share = 0.9
    """The stage fails when more than this share of the records is removed as duplicates."""
    holdout_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of the records that is held out from training, chosen by content id."""
    max_holdout: PositiveInt | None = None
    """Maximum number of holdout records."""
    max_records: PositiveInt | None = None
    """Maximum number of pool records; the sources share it by their weights."""
