"""Strategy `longest`: the most response tokens, a baseline that is hard to beat (arXiv 2402.04833)."""

from __future__ import annotations

import numpy as np

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Selection, descending, in_order


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:  # noqa: ARG001
    """From all scorable records; the score is the number of response tokens."""
    score = budget.tokens.astype(np.float64)
    return in_order(descending(score), score, candidates.scorable, budget)
