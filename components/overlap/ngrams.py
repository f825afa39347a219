r"""Word n-grams that a text shares with collections of reference texts, by comparison of the words.

Words are runs of letters and digits (\w+), in lower case. Each word of the references has a number, and an n-gram of
numbers w_1 ... w_n the hash sum(w_i * P^(n-i)) mod 2^64. The sorted hashes are an index only: where the hash of a
text's n-gram is found, the words of both places are compared. Two texts share an n-gram when n consecutive words are
the same (13 of them in arXiv 2005.14165, appendix C); a text of fewer words has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.data.records import Record

WORDS = re.compile(r"\w+")
PRIME = 0x9E3779B97F4A7C15  # odd, so that every word of an n-gram counts
UNKNOWN = 0  # number of a word that no reference has

Numbers = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

_NO_PLACES = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a text shares with a collection of references; places are numbers of words, from 0."""

    ngrams: int
    """Places of the text whose n-gram is in the collection."""
    word: int
    """The first of them."""
    reference: int
    """The first reference that has the n-gram there, by its number in the collection."""
    reference_word: int
    """Where that n-gram first begins in this reference."""


class NgramIndex:
    """The word n-grams of named collections of reference texts."""

    def __init__(self, collections: Mapping[str, Iterable[str]], n: int) -> None:
        self.n = n
        self._numbers: dict[str, int] = {}
        self._collections = {
            name: _Collection([self._learn(text) for text in texts], n) for name, texts in collections.items()
        }
        hashes = [np.empty(0, np.uint64), *(collection.hashes for collection in self._collections.values())]
        self._any = np.unique(np.concatenate(hashes))  # most texts share nothing, which one look into it tells

    def too_short(self, name: str) -> int:
        """Number of texts of the collection with fewer than n words, with which no text shares an n-gram."""
        return self._collections[name].too_short

    def overlaps(self, text: str) -> dict[str, Overlap]:
        """By name, what the text shares with the collections, as far as it shares anything."""
        words = np.array([self._numbers.get(word, UNKNOWN) for word in split_words(text)], np.uint64)
        hashes = _hashes(words, self.n)
        places = np.flatnonzero(_found(self._any, hashes))
        if not len(places):
            return {}
        shared = {name: collection.overlap(words, hashes, places) for name, collection in self._collections.items()}
        return {name: overlap for name, overlap in shared.items() if overlap is not None}

    def _learn(self, text: str) -> Numbers:
        numbers = self._numbers
        return np.array([numbers.setdefault(word, len(numbers) + 1) for word in split_words(text)], np.uint64)


class _Collection:
    """The n-grams of some texts, by their hashes."""

    def __init__(self, texts: list[Numbers], n: int) -> None:
        self.too_short = sum(len(words) < n for words in texts)
        self._n = n
        self._words = np.concatenate([np.empty(0, np.uint64), *texts])
        self._starts = np.cumsum([0, *map(len, texts)])
        hashes = [_hashes(words, n) for words in texts]
        own = [np.arange(len(one), dtype=np.int64) + start for one, start in zip(hashes, self._starts, strict=False)]
        unsorted, places = np.concatenate([np.empty(0, np.uint64), *hashes]), np.concatenate([_NO_PLACES, *own])
        order = np.argsort(unsorted, kind="stable")  # of equal ones the first place stays first
        self.hashes, self._places = unsorted[order], places[order]

    def overlap(self, words: Numbers, hashes: Numbers, places: Places) -> Overlap | None:
        """What a text shares with the collection, looked for at the given places of the text."""
        places = places[_found(self.hashes, hashes[places])]
        first = np.searchsorted(self.hashes, hashes[places])
        found = np.array([self._find(words, place, hashes[place], at) for place, at in zip(places, first, strict=True)])
        shared = np.flatnonzero(found >= 0) if len(found) else _NO_PLACES
        if not len(shared):
            return None
        place = found[shared[0]]
        reference = int(np.searchsorted(self._starts, place, "right")) - 1
        return Overlap(len(shared), int(places[shared[0]]), reference, int(place - self._starts[reference]))

    def _find(self, words: Numbers, word: int, hash_: np.uint64, at: int) -> int:
        """The first place of the n-gram that begins at `word`, -1 for none; its hash begins at `at` of the index."""
        while at < len(self.hashes) and self.hashes[at] == hash_:
            place = int(self._places[at])
            if np.array_equal(self._words[place : place + self._n], words[word : word + self._n]):
                return place
            at += 1  # another n-gram with the same hash
        return -1


def split_words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return WORDS.findall(text.lower())


def record_text(record: Record) -> str:
    """Prompt and response of a record: the text that its n-grams are taken from."""
    return f"{record.prompt}\n{record.response}"


def _found(index: Numbers, hashes: Numbers) -> npt.NDArray[np.bool_]:
    """For each hash whether the sorted index has it."""
    if not len(index):
        return np.zeros(len(hashes), np.bool_)
    nearest: Numbers = index[np.minimum(np.searchsorted(index, hashes), len(index) - 1)]
    return np.equal(nearest, hashes)


def _hashes(words: Numbers, n: int) -> Numbers:
    """The hash of the n-gram at each place; empty for fewer than n words."""
    hashes = np.zeros(max(0, len(words) - n + 1), np.uint64)
    for offset in range(n):
        hashes = hashes * np.uint64(PRIME) + words[offset : offset + len(hashes)]
    return hashes
