"""TF-IDF of word n-grams, the same as scikit-learn's to the last bit, in a fraction of its time.

scikit-learn makes a string of every n-gram and looks it up. Here a word is looked up once, and an n-gram is a number
made of its words' places in the alphabet; so n-grams sort as their strings would (a space sorts before every letter),
and the columns are scikit-learn's. The weights are its own, TfidfTransformer's, which adds a row's squares up in the
order in which the columns were first met.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

WORD = re.compile(r"(?u)\b\w\w+\b")  # scikit-learn's default
LARGEST = 2**63 - 1


def tfidf(responses: Sequence[str], ngrams: tuple[int, int]) -> Any:
    """TF-IDF weights (smooth idf, l2 norm) as a CSR matrix of float64, shape (responses, n-grams).

    `ngrams`: fewest and most words. Without any word in any response the matrix has no columns.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfTransformer

    counts, alphabetical = count_ngrams(responses, ngrams)
    if not len(alphabetical):  # an error to scikit-learn
        return sparse.csr_matrix(counts.shape, dtype=np.float64)
    weights = TfidfTransformer().fit(counts).transform(counts, copy=False)
    weights.indices = alphabetical[weights.indices]
    weights.has_sorted_indices = False
    weights.sort_indices()
    return weights


def count_ngrams(responses: Sequence[str], ngrams: tuple[int, int]) -> tuple[Any, npt.NDArray[Any]]:
    """How often each n-gram is in each response, and the place of each column in the alphabet.

    The counts are CSR of float64; its columns are in the order in which they were first met.
    """
    from scipy import sparse

    words, ends = _word_places(responses)
    rows_end, keys = _ngram_keys(words, ends, ngrams)
    del words
    distinct, places = np.unique(keys, return_inverse=True)
    del keys
    kind = np.int32 if max(len(distinct), len(places)) <= np.iinfo(np.int32).max else np.int64
    places = places.astype(kind)
    met = np.empty(len(distinct), np.int64)
    met[places[::-1]] = np.arange(len(places) - 1, -1, -1)  # the last to be assigned is the first to be met
    alphabetical = np.argsort(met).astype(kind)
    column = np.empty(len(distinct), kind)
    column[alphabetical] = np.arange(len(distinct), dtype=kind)
    counts = sparse.csr_matrix(
        (np.ones(len(places)), column[places], np.concatenate([[0], rows_end]).astype(kind)),
        shape=(len(responses), len(distinct)),
    )
    counts.sum_duplicates()
    return counts, alphabetical


def _word_places(responses: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The words of all responses, each as its place in the alphabet from 1, and where each response ends."""
    numbers: dict[str, int] = {}
    found, ends = array("q"), array("q")
    for response in responses:
        found.extend([numbers.setdefault(word, len(numbers)) for word in WORD.findall(response.lower())])
        ends.append(len(found))
    place_of = np.empty(len(numbers), np.int64)
    place_of[[numbers[word] for word in sorted(numbers)]] = np.arange(1, len(numbers) + 1)
    return place_of[np.frombuffer(found, np.int64)], np.frombuffer(ends, np.int64)


def _ngram_keys(
    words: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], ngrams: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each response's n-grams end, and a number for each n-gram that orders them as the alphabet does.

    A response's n-grams stay together, the shorter ones first.
    """
    fewest, most = ngrams
    lengths = np.diff(ends, prepend=0)
    sizes = np.arange(fewest, most + 1)
    begun = np.clip(lengths[:, None] - sizes + 1, 0, None)  # n-grams of each response and size
    blocks = begun.ravel()
    first = np.repeat(ends - lengths, len(sizes))  # word that each block begins with
    within = np.arange(int(blocks.sum())) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    begins = within + np.repeat(first, blocks)
    del within
    size = np.repeat(np.tile(sizes, len(lengths)).astype(np.int8), blocks)
    keys = words[begins]
    base = int(words.max(initial=0)) + 1
    for place in range(1, most):
        if int(keys.max(initial=0)) > (LARGEST - base) // base:
            keys = np.unique(keys, return_inverse=True)[1]  # closer together, in the same order
        keys *= base
        inside = np.flatnonzero(size > place)
        keys[inside] += words[begins[inside] + place]
    return np.cumsum(begun.sum(axis=1)), keys
