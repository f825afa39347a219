"""Strategy `random-fresh`: other random records in each iteration, until every one has been used once.

A method that chooses anew in each iteration may train on more distinct records than one that always picks the same.
This baseline has as much variety as is possible, so what beats it does so by its choice.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Floats, Selection, descending, in_order
from components.strategies.random import random_scores


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:
    """From all scorable records, in an order that select.seed decides; the score is that of `random`."""
    score = random_scores(candidates, settings.seed)
    return next_in_turn(descending(score), score, candidates, budget)


def next_in_turn(order: Sequence[int], score: Floats, candidates: Candidates, budget: Budget) -> Selection:
    """Pick in `order`, after what the earlier iterations picked from these candidates; after the last comes the first.

    Fewer candidates than in an earlier iteration are those that rank first in `order` or were picked then, so the turn
    stays the same (components/select.py, next_candidates).
    """
    order = list(order)
    for _ in range(candidates.iteration - 1):
        used = set(in_order(order, score, candidates.scorable, copy.deepcopy(budget)).indices.tolist())
        order = [row for row in order if row not in used] + [row for row in order if row in used]
    return in_order(order, score, candidates.scorable, budget)
