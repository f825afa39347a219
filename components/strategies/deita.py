"""Highest score first, unless a pick is too similar already: the way of DEITA (arXiv 2312.15685).

There a trained scorer gives quality x complexity, and the distance is that of embeddings; here the score is the
complexity, and the similarity the cosine of TF-IDF weights.
"""

from __future__ import annotations

import numpy as np

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Selection, falling, similarity_to
from components.strategies.iterit import NGRAMS
from components.strategies.tfidf import tfidf


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:
    """Of the aligned records none whose cosine with an earlier pick is above select.max_similarity; a pick's
    diversity is 1 - its highest cosine with the picks before it.
    """
    aligned = candidates.aligned
    weights = tfidf(candidates.responses, NGRAMS)
    nearest = np.zeros(len(candidates))
    picks, diversity = [], []
    for candidate in falling(candidates.complexity):
        if not aligned[candidate] or nearest[candidate] > settings.max_similarity or not budget.allows(candidate):
            continue
        budget.take(candidate)
        picks.append(candidate)
        diversity.append(1 - nearest[candidate])
        nearest = np.maximum(nearest, similarity_to(weights, candidate))
    indices = np.array(picks, np.int64)
    return Selection(indices, np.array(diversity), candidates.complexity[indices], aligned)
