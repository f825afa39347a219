"""The sets of word n-grams of many texts, as whole numbers in flat arrays.

Every word has a number, and the number of an n-gram is the place where it occurs first among the words of all texts. A
hash table only finds such a place; whether the n-gram there is the same is told by its words. So two sets share a
number exactly where the texts share the n-gram, whatever their hashes.

In the end the numbers are ranks by rarity: an n-gram of fewer sets comes before one of more. Each set is in ascending
order, its rarest n-gram first, which is the order that a join of the sets needs (similarity_join.py).

Bytes a word of the texts, at most: 4 for its number, 6 for the hash table, 4 for the n-gram in its set, 4 for how often
that occurs. Afterwards 4 for the n-gram are left.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from components.overlap.ngrams import PRIME, split_words

Integers = npt.NDArray[Any]  # int32, or int64 where there are more words than that counts

PADDING = 0  # number of no word
EMPTY = -1  # place of no n-gram
LARGEST = 2**31 - 1

_PRIME = np.uint64(PRIME)
_HALF = np.uint64(32)


@dataclass(frozen=True, slots=True)
class ShingleSets:
    """Set i is values[ends[i - 1]:ends[i]], ascending, each number once."""

    values: Integers
    bounds: npt.NDArray[np.int64]
    """Where each set begins, and where the last one ends."""
    shared: int
    """The smallest number that is in more than one set."""
    distinct: int
    """How many numbers there are."""

    def __len__(self) -> int:
        return len(self.bounds) - 1


class ShingleCollector:
    """Takes texts one at a time, and gives their sets of n-grams.

    A text of fewer than n words has a single n-gram of all its words; one without any word is itself a word.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._numbers: defaultdict[str, int] = defaultdict(count(PADDING + 1).__next__)
        self._words, self._ends = array("i"), array("q", [0])

    def add(self, text: str) -> None:
        """Append the set of a text."""
        words = split_words(text) or [text.lower()]  # with an empty set, all texts without words would be alike
        self._words.extend(map(self._numbers.__getitem__, words))
        self._words.extend([PADDING] * (self._n - len(words)))
        self._ends.append(len(self._words))

    def finish(self) -> ShingleSets:
        """The sets of the texts, in their order. Nothing can be added afterwards."""
        self._numbers.clear()
        words, ends = np.frombuffer(self._words, np.int32), np.frombuffer(self._ends, np.int64)
        places = np.int32 if len(words) < LARGEST else np.int64
        slots = np.full(len(words) + len(words) // 2 + 1, EMPTY, places)
        values = np.empty(len(words) - (self._n - 1) * (len(ends) - 1), places)
        _number_ngrams(words, ends, self._n, slots, values)
        total = len(words)
        del words, slots
        self._words = array("i")
        counts, bounds = np.zeros(total, places), np.zeros(len(ends), np.int64)
        values = values[: _make_sets(values, ends, self._n, counts, bounds)]
        shared, distinct = _rank_by_rarity(counts, len(ends))
        _replace_by_rank(values, bounds, counts)
        return ShingleSets(values, bounds, shared, distinct)


@njit(cache=True)
def _number_ngrams(words: Integers, ends: Integers, n: int, slots: Integers, values: Integers) -> None:
    """Write the place of its first occurrence for the n-gram at each place; `slots` is the hash table of these."""
    written = 0
    for text in range(len(ends) - 1):
        for place in range(ends[text], ends[text + 1] - n + 1):
            hash_ = np.uint64(0)
            for offset in range(n):
                hash_ = (hash_ ^ np.uint64(words[place + offset])) * _PRIME
                hash_ ^= hash_ >> _HALF
            slot = np.int64(hash_ % np.uint64(len(slots)))
            first = slots[slot]
            while first != EMPTY and not _same_words(words, first, place, n):
                slot = np.int64(slot + 1 if slot + 1 < len(slots) else 0)
                first = slots[slot]
            if first == EMPTY:
                slots[slot] = place
            values[written] = slots[slot]
            written += 1


@njit(cache=True)
def _same_words(words: Integers, first: int, second: int, n: int) -> bool:
    for offset in range(n):  # noqa: SIM110  compiled
        if words[first + offset] != words[second + offset]:
            return False
    return True


@njit(cache=True)
def _make_sets(values: Integers, ends: Integers, n: int, counts: Integers, bounds: Integers) -> int:
    """Sort each text's n-grams and drop the repeated ones, in place; count the sets of each. Returns the new length."""
    read, written = 0, 0
    for text in range(len(ends) - 1):
        own = values[read : read + ends[text + 1] - ends[text] - n + 1]
        own.sort()
        read += len(own)
        for index in range(len(own)):
            if index == 0 or own[index] != own[index - 1]:
                counts[own[index]] += 1
                values[written] = own[index]  # never ahead of what is still to be read
                written += 1
        bounds[text + 1] = written
    return written


@njit(cache=True)
def _rank_by_rarity(counts: Integers, most: int) -> tuple[int, int]:
    """Replace each count by the n-gram's rank. Returns the first rank of those in several sets, and how many there are.

    Among equally rare ones that of the smaller place comes first: a counting sort.
    """
    following = np.zeros(most + 2, np.int64)
    for place in range(len(counts)):
        following[counts[place] + 1] += 1
    following[1] = 0  # places where no n-gram occurs first
    for number in range(1, len(following)):
        following[number] += following[number - 1]
    shared, distinct = int(following[2]), int(following[-1])
    for place in range(len(counts)):
        times = counts[place]
        if times:
            counts[place] = following[times]
            following[times] += 1
    return shared, distinct


@njit(cache=True)
def _replace_by_rank(values: Integers, bounds: Integers, ranks: Integers) -> None:
    for text in range(len(bounds) - 1):
        own = values[bounds[text] : bounds[text + 1]]
        for index in range(len(own)):
            own[index] = ranks[own[index]]
        own.sort()
