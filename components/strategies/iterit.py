"""Strategies `iterit` and `iterit-static`: greedy selection by complexity x diversity (IterIT, arXiv 2412.17365).

    diversity(i) = sum over the n-grams j of response i of tfidf[i, j] * weight[j]      weight starts at 1
    k times: pick the eligible i with the highest complexity(i) * diversity(i), the lowest index among equals,
             then weight[j] *= decay for every n-gram j of the picked response

Weights only fall, so a gain computed earlier is an upper bound of the gain now. A heap of such bounds gives the same
picks as computing every gain again for each pick (lazy greedy, Minoux 1978): when the bound at the top is up to date,
nothing below it can be better. This holds to the last bit, because every gain is the same sum in the same order, and
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
from components.strategies import interface
from components.strategies.interface import Budget, Candidates, Flags, Floats, Integers, Selection
from components.strategies.tfidf import NGRAMS, tfidf

# numba caches the loop below with these two inlined: when they change, change this file as well
_allows = njit(cache=True)(interface.allows)
_take = njit(cache=True)(interface.take)


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:
    """From the aligned records; the score is complexity x diversity."""
    return pick(candidates.responses, candidates.complexity, candidates.aligned, budget, settings.diversity_decay)


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
    assert len(responses) == len(values), "one complexity per response"
    eligible = np.isfinite(values) & (values < 1)
    return pick(responses, values, eligible, Budget.of(k, np.zeros(len(values))), decay, ngrams)


def compile_ahead() -> None:
    """Compile the loop into numba's cache, so that the first selection does not wait for it; `make setup` does this."""
    greedy_select(["one two"], [0.5], 1, decay=0.1)


def pick(
    responses: Sequence[str],
    complexity: Floats,
    eligible: Flags,
    budget: Budget,
    decay: float,
    ngrams: tuple[int, int] = NGRAMS,
) -> Selection:
    """Pick greedily among the eligible as far as the budget allows."""
    assert 0 <= decay <= 1, "weights must not grow"
    rows = np.flatnonzero(eligible)
    values = complexity[rows]
    assert not (values < 0).any(), "complexity is an exponential"
    if not len(rows):
        return Selection(rows, np.empty(0), np.empty(0), eligible)
    weights = tfidf([responses[row] for row in rows.tolist()], ngrams)
    limits = (budget.left, budget.tokens[rows], budget.source[rows], budget.owed, budget.room)
    picks, diversity = lazy_greedy(weights, values, decay, *limits)
    return Selection(rows[picks], diversity, values[picks] * diversity, eligible)


def lazy_greedy(tfidf: Any, complexity: Floats, decay: float, *limits: Integers) -> tuple[Integers, Floats]:
    """Rows of `tfidf` (CSR) in pick order, and the diversity of each when it was picked; `limits` are the Budget's."""
    # a product with ones adds each row up from left to right, as the compiled loop does
    first_gains = complexity * (tfidf @ np.ones(tfidf.shape[1]))
    picks, diversity = _lazy_greedy(tfidf.data, tfidf.indices, tfidf.indptr, first_gains, complexity, decay, *limits)
    return picks, diversity


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
    weight = np.ones(columns.max() + 1 if len(columns) else 0)
    heap = [(-bounds[row], row, 0) for row in range(len(bounds))]
    heapq.heapify(heap)
    picks, diversity = [0 for _ in range(0)], [0.0 for _ in range(0)]
    while len(heap) and left[0] > 0:
        _, row, computed_at = heap[0]
        if not _allows(row, left, tokens, source, owed, room):
            heapq.heappop(heap)
            continue
        current = 0.0
        for entry in range(ends[row], ends[row + 1]):
            current += values[entry] * weight[columns[entry]]
        if computed_at < len(picks):
            heapq.heapreplace(heap, (-(complexity[row] * current), row, len(picks)))
            continue
        heapq.heappop(heap)
        _take(row, left, tokens, source, owed, room)
        picks.append(row)
        diversity.append(current)
        for entry in range(ends[row], ends[row + 1]):
            weight[columns[entry]] *= decay
    return np.array(picks, np.int64), np.array(diversity, np.float64)
