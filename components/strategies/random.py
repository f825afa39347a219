"""Strategy `random`: the same random records in every iteration, the baseline that the others have to beat."""

from __future__ import annotations

import hashlib

import numpy as np

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Floats, Selection, descending, in_order


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:
    """From all scorable records; the score is a hash of select.seed and the id, whatever other records there are."""
    score = random_scores(candidates, settings.seed)
    return in_order(descending(score), score, candidates.scorable, budget)


def random_scores(candidates: Candidates, seed: int) -> Floats:
    """A number in [0, 1) for each candidate, which depends on the seed and its id alone."""
    digests = (hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in candidates.ids)
    return np.array([int.from_bytes(digest[:6], "big") / 2**48 for digest in digests], np.float64)
