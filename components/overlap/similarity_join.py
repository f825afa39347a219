"""The most similar of the sets that were added so far: an exact join by Jaccard similarity that compares few pairs.

Two sets a and b of similarity |a & b| / |a | b| >= t have at least t/(1 + t) (|a| + |b|) numbers in common, so at least
t |a| and t |b|. With every set in the same order, the rarest number first, this leaves few pairs to compare:

    prefix filter       they share a number among the first |a| - ceil(t |a|) + 1 of a and the first such of b: only
                        these are indexed and looked up (Chaudhuri, Ganti and Kaushik, ICDE 2006; Bayardo, Ma and
                        Srikant, WWW 2007)
    positional filter   from the first number that they share, 1 + the fewer of the numbers behind it in a and in b must
                        be enough (Xiao, Wang, Lin and Yu, PPJoin, WWW 2008). The length filter |b| >= t |a| is part
                        of it
    verification        the common numbers are counted along both sets, until what is left cannot be enough

t is the threshold at first, then the highest similarity that was found. The filters leave out only pairs below it. The
numbers stand for the n-grams themselves and not for hashes (shingles.py), so the similarity is that of the texts.

Bytes: 8 for each number of a prefix, 4 for each set and 16 for each number that is in several sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from components.overlap.shingles import LARGEST, Integers, ShingleCollector, ShingleSets

ROUNDING = 1e-6  # of a bound in floating point: it only lets a pair more through, which is then compared exactly


@dataclass(frozen=True, slots=True)
class Match:
    """A set that another set resembles: its index, and their Jaccard similarity."""

    index: int
    similarity: float


class SimilarityIndex:
    """An inverted index of the prefixes of sets."""

    def __init__(self, sets: ShingleSets, threshold: float, rows: Sequence[int]) -> None:
        """`rows`: the sets that may be added, each once."""
        self._sets, self._threshold = (sets.values, sets.bounds, sets.shared), threshold
        self._starts = np.zeros(sets.distinct - sets.shared + 1, np.int64)
        _count_prefixes(np.array(rows, np.int64), *self._sets, threshold, self._starts)
        self._ends = self._starts.copy()  # of the lists that are filled so far
        size = int(self._starts[-1])
        self._rows = np.empty(size, np.int32 if len(sets) < LARGEST else np.int64)
        self._positions = np.empty(size, np.int32)
        self._seen = np.full(len(sets), -1, self._rows.dtype)  # the last set that each was compared with

    def add(self, row: int) -> None:
        """Make the set one that `nearest` finds."""
        _add(row, *self._sets, self._threshold, self._ends, self._rows, self._positions)

    def nearest(self, row: int) -> Match | None:
        """The most similar of the added sets, if any reaches the threshold; the lowest index of equally similar ones.

        To be called once for a set, before it is added itself.
        """
        lists = (self._starts, self._ends, self._rows, self._positions)
        index, similarity = _nearest(row, *self._sets, self._threshold, *lists, self._seen)
        return Match(index, similarity) if index >= 0 else None


def compile_ahead() -> None:
    """Compile the loops into numba's cache, so that the first dedupe does not wait for it; `make setup` does this."""
    collector = ShingleCollector(1)
    for text in ("one two", "one two"):
        collector.add(text)
    index = SimilarityIndex(collector.finish(), 1.0, [0])
    index.add(0)
    assert index.nearest(1) == Match(0, 1.0)


@njit(cache=True)
def _prefix_length(size: int, threshold: float) -> int:
    return size - max(1, int(np.ceil(threshold * size - ROUNDING))) + 1


@njit(cache=True)
def _count_prefixes(
    rows: Integers, values: Integers, bounds: Integers, shared: int, threshold: float, starts: Integers
) -> None:
    """Where the list of each number begins when all rows are added; numbers of a single set have none."""
    for row in rows:
        for place in range(bounds[row], bounds[row] + _prefix_length(bounds[row + 1] - bounds[row], threshold)):
            if values[place] >= shared:
                starts[values[place] - shared + 1] += 1
    for number in range(1, len(starts)):
        starts[number] += starts[number - 1]


@njit(cache=True)
def _add(
    row: int,
    values: Integers,
    bounds: Integers,
    shared: int,
    threshold: float,
    ends: Integers,
    rows: Integers,
    positions: Integers,
) -> None:
    begin, size = bounds[row], bounds[row + 1] - bounds[row]
    for position in range(_prefix_length(size, threshold)):
        number = values[begin + position] - shared
        if number >= 0:
            rows[ends[number]], positions[ends[number]] = row, position
            ends[number] += 1


@njit(cache=True)
def _nearest(
    row: int,
    values: Integers,
    bounds: Integers,
    shared: int,
    threshold: float,
    starts: Integers,
    ends: Integers,
    rows: Integers,
    positions: Integers,
    seen: Integers,
) -> tuple[int, float]:
    own = values[bounds[row] : bounds[row + 1]]
    found, best, position = -1, threshold, 0
    while position < _prefix_length(len(own), best):
        number = own[position] - shared
        for entry in range(starts[number], ends[number]) if number >= 0 else range(0):
            candidate = rows[entry]
            if seen[candidate] == row:
                continue
            seen[candidate] = row
            # the first number that the two share: one before it would have led here earlier
            other = values[bounds[candidate] + positions[entry] : bounds[candidate + 1]]
            size = len(own) + len(other) + positions[entry]
            least = int(np.ceil(best / (1 + best) * size - ROUNDING))
            common = _count_common(own[position:], other, least)
            similarity = common / (size - common)
            if similarity > best or (similarity == best and (found < 0 or candidate < found)):
                found, best = candidate, similarity
        position += 1
    return found, best


@njit(cache=True)
def _count_common(a: Integers, b: Integers, least: int) -> int:
    """The number of common numbers of two ascending arrays; 0 as soon as there cannot be `least` of them."""
    i, j, common = 0, 0, 0
    while i < len(a) and j < len(b):
        if common + min(len(a) - i, len(b) - j) < least:
            return 0
        if a[i] == b[j]:
            i, j, common = i + 1, j + 1, common + 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return common
