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

from components.settings import SelectSettings
from components.strategies.selection import Selection, is_eligible

NGRAMS = (1, 3)


def select(
    responses: Sequence[str], complexity: npt.NDArray[np.float64], k: int, settings: SelectSettings
) -> Selection:
    return greedy_select(responses, complexity, k, decay=settings.diversity_decay)


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
    complexities = np.asarray(complexity, dtype=np.float64)
    assert len(responses) == len(complexities), "one complexity a response"
    assert 0 <= decay <= 1, "weights must not grow"
    eligible = np.flatnonzero(is_eligible(complexities))
    kept = complexities[eligible]
    assert not (kept < 0).any(), "complexity is an exponential"
    if k <= 0 or not len(eligible):
        return Selection(np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0))
    weights = _tfidf([responses[index] for index in eligible.tolist()], ngrams)
    picks, diversity = _lazy_greedy(weights, kept, k, decay)
    return Selection(eligible[picks], kept[picks], diversity, kept[picks] * diversity)


def _tfidf(responses: Sequence[str], ngrams: tuple[int, int]) -> Any:
    """TF-IDF weights as a CSR matrix, shape (responses, n-grams); no columns where no response has a word."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=ngrams)
    words = vectorizer.build_analyzer()
    if not any(words(response) for response in responses):  # an empty vocabulary is an error to scikit-learn
        return sparse.csr_matrix((len(responses), 0), dtype=np.float64)
    matrix = vectorizer.fit_transform(responses)
    matrix.sort_indices()
    return matrix


def _lazy_greedy(
    tfidf: Any, complexity: npt.NDArray[np.float64], k: int, decay: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Rows in pick order, and the diversity of each when it was picked."""
    values, columns, ends = tfidf.data, tfidf.indices, tfidf.indptr
    weight = np.ones(tfidf.shape[1])
    # a product with ones adds each row up from left to right, as the cumulative sum below does
    bounds = complexity * (tfidf @ weight)
    heap = [(-bound, row, 0) for row, bound in enumerate(bounds.tolist())]
    heapq.heapify(heap)
    picks: list[int] = []
    diversity: list[float] = []
    while heap and len(picks) < k:
        _, row, computed_at = heap[0]
        first, last = ends[row], ends[row + 1]
        own = columns[first:last]
        # any other order of summation could turn a tie into a difference of one rounding
        sums = np.cumsum(values[first:last] * weight[own])
        current = float(sums[-1]) if last > first else 0.0
        if computed_at < len(picks):
            gain = float(complexity[row] * current)
            heapq.heapreplace(heap, (-gain, row, len(picks)))
            continue
        heapq.heappop(heap)
        picks.append(row)
        diversity.append(current)
        weight[own] *= decay
    return np.array(picks, np.int64), np.array(diversity)
