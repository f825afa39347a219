"""Strategy `deita-style`: the highest score first, without picks that resemble earlier ones (DEITA, arXiv 2312.15685).

DEITA's score is quality x complexity by a trained scorer, and its similarity that of embeddings; here the score is the
complexity, and the similarity the cosine of TF-IDF weights.
"""

from __future__ import annotations

import numpy as np

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Selection, descending, similarity_to
from components.strategies.tfidf import NGRAMS, tfidf


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:
    """From the aligned records, without those whose cosine with an earlier pick is above select.max_similarity.

    The diversity of a pick is 1 - its highest cosine with the picks before it.
    """
    aligned = candidates.aligned
    weights = tfidf(candidates.responses, NGRAMS)
    nearest = np.zeros(len(candidates))  # highest cosine with a pick
    picks, diversity = [], []
    for candidate in descending(candidates.complexity):
        if not aligned[candidate] or nearest[candidate] > settings.max_similarity or not budget.allows(candidate):
            continue
        budget.take(candidate)
        picks.append(candidate)
        diversity.append(1 - nearest[candidate])
        nearest = np.maximum(nearest, similarity_to(weights, candidate))
    indices = np.array(picks, np.int64)
    return Selection(indices, np.array(diversity), candidates.complexity[indices], aligned)
