"""Strategy `random-balanced`: as `random-fresh`, but with equally many records of each source while it has some."""

from __future__ import annotations

from collections import defaultdict

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Selection, descending
from components.strategies.random import random_scores
from components.strategies.random_fresh import next_in_turn


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:
    """From all scorable records, one of each source in turn; the score is that of `random`."""
    score = random_scores(candidates, settings.seed)
    order = [row for row in descending(score) if candidates.scorable[row]]
    place: dict[int, int] = {}  # of a candidate within its source
    counts: dict[int, int] = defaultdict(int)
    for row in order:
        source = int(budget.source[row])
        place[row], counts[source] = counts[source], counts[source] + 1
    return next_in_turn(sorted(order, key=place.__getitem__), score, candidates, budget)
