"""The same random records in every iteration: what any other strategy has to beat."""

from __future__ import annotations

import hashlib

import numpy as np

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Selection, falling, in_order


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:
    """From all scorable records, by a hash of select.seed and the record's id: more data do not change the order."""
    digests = (hashlib.sha256(f"{settings.seed}:{key}".encode()).digest() for key in candidates.ids)
    score = np.array([int.from_bytes(digest[:6], "big") / 2**48 for digest in digests], np.float64)
    return in_order(falling(score), score, candidates.scorable, budget)
