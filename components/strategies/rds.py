"""Strategy `rds+`: the records most like the examples of the target, by embeddings (RDS+, arXiv 2503.01807).

The examples take turns, in their order. Each takes the record whose embedding has the highest cosine with its own, of
those that are not picked yet. (The released code lets an example lose its turn where its record was picked already.)
components/scoring/embeddings.py has the embeddings. They are read a part at a time, and for each example only the
nearest records are kept in memory: where these are used up, the table is read again.
"""

from __future__ import annotations

import math

import numpy as np

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Embeddings, Flags, Floats, Integers, Selection

LEAST = 16  # records that are kept for each example


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:  # noqa: ARG001
    """From all scorable records; the score is the cosine with the example that the record was picked for."""
    embeddings = candidates.embeddings
    assert embeddings is not None, "settings ask for them"
    count = len(embeddings.targets)
    left = candidates.scorable.copy()
    depth = LEAST + 2 * math.ceil(min(int(budget.left[0]), len(candidates)) / count)
    picks: list[int] = []
    scores: list[float] = []
    turn = 0
    while budget.left[0] > 0 and left.any():
        nearest, cosines = find_nearest(embeddings, left, depth)
        place = np.zeros(count, np.int64)
        while budget.left[0] > 0 and place[turn] < nearest.shape[1]:
            candidate, cosine = int(nearest[turn, place[turn]]), float(cosines[turn, place[turn]])
            place[turn] += 1
            if not left[candidate]:
                continue
            left[candidate] = False
            if budget.allows(candidate):
                budget.take(candidate)
                picks.append(candidate)
                scores.append(cosine)
                turn = (turn + 1) % count
        if nearest.shape[1] < depth:
            break  # no example has any other
        depth *= 2
    indices = np.array(picks, np.int64)
    return Selection(indices, np.full(len(indices), np.nan), np.array(scores), candidates.scorable)


def find_nearest(embeddings: Embeddings, left: Flags, depth: int) -> tuple[Integers, Floats]:
    """For each example the candidates that are `left`, by falling cosine, `depth` at most; and the cosines.

    Both of shape (examples, at most depth); of equal cosines the first in the table comes first.
    """
    count = len(embeddings.targets)
    nearest: Integers = np.empty((count, 0), np.int64)
    cosines: Floats = np.empty((count, 0))
    for rows, block in embeddings.read():
        kept = left[rows]
        of_block = (embeddings.targets @ block[kept].T).astype(np.float64)
        cosines = np.concatenate([cosines, of_block], axis=1)
        nearest = np.concatenate([nearest, np.broadcast_to(rows[kept], of_block.shape)], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :depth]
        nearest, cosines = np.take_along_axis(nearest, order, axis=1), np.take_along_axis(cosines, order, axis=1)
    return nearest, cosines
