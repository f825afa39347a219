"""Strategy `perplexity`: responses of medium perplexity given their prompts (arXiv 2309.04564)."""

from __future__ import annotations

import numpy as np

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Selection, descending, in_order


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:
    """From the scorable records whose nll_conditional lies between the quantiles of select.perplexity_range.

    Those nearest to the middle of the range come first; the score is minus the distance to it, in quantiles.
    """
    scorable = np.flatnonzero(candidates.scorable)
    count = len(scorable)
    ranks = np.argsort(np.argsort(candidates.nll_conditional[scorable], kind="stable"), kind="stable")
    doubled = np.full(len(candidates), np.nan)  # 2 x quantile x count: whole numbers, so that ties are exact
    doubled[scorable] = 2 * ranks + 1
    low, high = (2 * count * share for share in settings.perplexity_range)
    score = -np.abs(doubled - (low + high) / 2) / max(2 * count, 1)
    return in_order(descending(score), score, (low <= doubled) & (doubled <= high), budget)
