"""Strategy `facility-location`: greedy facility location over the responses' TF-IDF weights.

    value(S) = sum over all scorable records i of the highest cosine of i with a record of S

The value is submodular, so the greedy picks reach at least 1 - 1/e of the best one (Nemhauser et al. 1978), and a gain
computed earlier is an upper bound of the gain now (Minoux 1978).
"""

from __future__ import annotations

import heapq

import numpy as np

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Selection, similarity_to
from components.strategies.tfidf import NGRAMS, tfidf


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:  # noqa: ARG001
    """From all scorable records.

    The score of a pick is its gain in value, its diversity the share of that in the gain of a first pick.
    """
    scorable = candidates.scorable
    rows = np.flatnonzero(scorable)
    weights = tfidf([candidates.responses[row] for row in rows.tolist()], NGRAMS)
    first_gains = weights @ np.asarray(weights.sum(axis=0)).ravel()  # the sum of a row's cosines, none is negative
    heap = [(-gain, row, 0) for row, gain in enumerate(first_gains.tolist())]
    heapq.heapify(heap)
    nearest = np.zeros(len(rows))  # highest cosine with a pick
    picks: list[int] = []
    gains, shares = [], []
    while heap and budget.left[0] > 0:
        bound, row, computed_at = heapq.heappop(heap)
        if not budget.allows(rows[row]):
            continue
        if computed_at < len(picks):
            gain = float(np.maximum(similarity_to(weights, row) - nearest, 0).sum())
            heapq.heappush(heap, (-gain, row, len(picks)))
            continue
        budget.take(rows[row])
        picks.append(int(rows[row]))
        gains.append(-bound)
        shares.append(-bound / first_gains[row] if first_gains[row] else 0.0)
        nearest = np.maximum(nearest, similarity_to(weights, row))
    return Selection(np.array(picks, np.int64), np.array(shares), np.array(gains), scorable)
