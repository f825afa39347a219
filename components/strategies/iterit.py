"""Greedy selection by complexity x diversity, the method of IterIT (arXiv 2412.17365).

    diversity(i) = sum over the n-grams j of response i of tfidf[i, j] * weight[j]      weight starts at 1
    k times: pick the eligible i with the highest complexity(i) * diversity(i), the lower index where they are equal,
             then weight[j] *= decay for every n-gram j of the picked response

Weights only fall, so a gain computed earlier is an upper bound of the gain now. A heap of such bounds gives the same
picks as computing every gain anew for each pick (lazy greedy, Minoux 1978): when the top is up to date, nothing
below it can be better. This holds to the last bit, because every gain is the same sum in the same order, and
rounding is monotonic: smaller weights never give a larger sum.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Flags, Floats, Integers, Selection, allows, take
from components.strategies.tfidf import tfidf

NGRAMS = (1, 3)


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:
    return pick(
        candidates.responses, candidates.complexity, candidates.aligned, budget, settings.diversity_decay, NGRAMS
    )


def greedy_select(
    responses: Sequence[str],
    complexity: npt.ArrayLike,
    k: int,
    *,
    decay: float,
    ngrams: tuple[int, int] = NGRAMS,
) -> Selection:
    """At most k picks among the eligible (complexity below 1); indices refer to `responses`.

    TF-IDF (scikit-learn's: lower case, words of two or more letters, smooth idf, l2 norm) is fitted on the eligible
    responses. Gains are float64. A complexity below 0 is an error of the caller.
    """
    values = np.asarray(complexity, dtype=np.float64)
    assert len(responses) == len(values), "one complexity a response"
    eligible = np.isfinite(values) & (values < 1)
    return pick(responses, values, eligible, Budget.of(k, np.zeros(len(values))), decay, ngrams)


def compile_ahead() -> None:
    """Leave the compiled loop beside this file, which `make setup` does: the first selection would wait for it."""
    greedy_select(["one two"], [0.5], 1, decay=0.1)


def pick(
    responses: Sequence[str],
    complexity: Floats,
    eligible: Flags,
    budget: Budget,
    decay: float,
    ngrams: tuple[int, int],
) -> Selection:
    assert 0 <= decay <= 1, "weights must not grow"
    rows = np.flatnonzero(eligible)
    kept = complexity[rows]
    assert not (kept < 0).any(), "complexity is an exponential"
    if not len(rows):
        return Selection(rows, np.empty(0), np.empty(0), eligible)
    weights = tfidf([responses[row] for row in rows.tolist()], ngrams)
    limits = (budget.left, budget.tokens[rows], budget.source[rows], budget.owed, budget.room)
    picks, diversity = _lazy_greedy(*_first_bounds(weights, kept), kept, decay, *limits)
    return Selection(rows[picks], diversity, kept[picks] * diversity, eligible)


def _first_bounds(weights: Any, complexity: Floats) -> tuple[Floats, npt.NDArray[Any], npt.NDArray[Any], Floats]:
    """The matrix in parts, and the gain of every row before the first pick."""
    # a product with ones adds each row up from left to right, as the loop below does
    return weights.data, weights.indices, weights.indptr, complexity * (weights @ np.ones(weights.shape[1]))


@njit(cache=True)
def _lazy_greedy(
    values: Floats,
    columns: npt.NDArray[Any],
    ends: npt.NDArray[Any],
    bounds: Floats,
    complexity: Floats,
    decay: float,
    left: Integers,
    tokens: Integers,
    source: Integers,
    owed: Integers,
    room: Integers,
) -> tuple[Integers, Floats]:
    """Rows in pick order, and the diversity of each when it was picked; the last five are the Budget's."""
    weight = np.ones(columns.max() + 1 if len(columns) else 0)
    heap = [(-bounds[row], row, 0) for row in range(len(bounds))]
    heapq.heapify(heap)
    picks, diversity = [0 for _ in range(0)], [0.0 for _ in range(0)]
    while len(heap) and left[0] > 0:
        _, row, computed_at = heap[0]
        if not allows(row, left, tokens, source, owed, room):
            heapq.heappop(heap)
            continue
        current = 0.0
        for place in range(ends[row], ends[row + 1]):
            current += values[place] * weight[columns[place]]
        if computed_at < len(picks):
            heapq.heapreplace(heap, (-(complexity[row] * current), row, len(picks)))
            continue
        heapq.heappop(heap)
        take(row, left, tokens, source, owed, room)
        picks.append(row)
        diversity.append(current)
        for place in range(ends[row], ends[row + 1]):
            weight[columns[place]] *= decay
    return np.array(picks, np.int64), np.array(diversity, np.float64)
