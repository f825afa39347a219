"""Strategy `k-center`: greedy k-center over the responses' TF-IDF weights (arXiv 1708.00489).

Each pick is the record farthest from all picks before it, so that in the end no record is far from a pick.
"""

from __future__ import annotations

import numpy as np

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Selection, similarity_to
from components.strategies.tfidf import NGRAMS, tfidf


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:  # noqa: ARG001
    """From all scorable records, beginning with the highest complexity.

    Score and diversity of a pick are 1 - its highest cosine with the picks before it.
    """
    scorable = candidates.scorable
    weights = tfidf(candidates.responses, NGRAMS)
    distance = np.where(scorable, 1 + np.nan_to_num(candidates.complexity), -np.inf)  # at least any cosine distance
    picks, diversity = [], []
    while budget.left[0] > 0 and np.isfinite(distance).any():
        candidate = int(distance.argmax())
        if budget.allows(candidate):
            budget.take(candidate)
            picks.append(candidate)
            diversity.append(min(float(distance[candidate]), 1.0))
            distance = np.minimum(distance, 1 - similarity_to(weights, candidate))
        distance[candidate] = -np.inf
    indices = np.array(picks, np.int64)
    return Selection(indices, np.array(diversity), np.array(diversity), scorable)
