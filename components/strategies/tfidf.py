"""TF-IDF of word n-grams: scikit-learn's to the last bit, in a fraction of its time.

scikit-learn makes a string of every n-gram and looks it up. Here every word is looked up once, and an n-gram is a
number composed of its words' ranks in alphabetical order. So n-grams sort as their strings would (a space sorts before
every letter), and the columns are scikit-learn's. The weights are its own, computed by TfidfTransformer, which adds up
the squares of a row in the order in which its columns first occurred.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

NGRAMS = (1, 3)  # fewest and most words of the n-grams that strategies compare responses by
WORD = re.compile(r"(?u)\b\w\w+\b")  # scikit-learn's default
LARGEST = 2**63 - 1


def tfidf(responses: Sequence[str], ngrams: tuple[int, int]) -> Any:
    """TF-IDF weights (smooth idf, l2 norm) as a CSR matrix of float64, shape (responses, n-grams).

    `ngrams`: fewest and most words. The matrix has no columns if no response contains a word.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfTransformer

    counts, alphabetical = count_ngrams(responses, ngrams)
    if not len(alphabetical):  # an error in scikit-learn
        return sparse.csr_matrix(counts.shape, dtype=np.float64)
    weights = TfidfTransformer().fit(counts).transform(counts, copy=False)
    weights.indices = alphabetical[weights.indices]
    weights.has_sorted_indices = False
    weights.sort_indices()
    return weights


def count_ngrams(responses: Sequence[str], ngrams: tuple[int, int]) -> tuple[Any, npt.NDArray[Any]]:
    """Occurrences of each n-gram in each response, and each column's rank in alphabetical order.

    The counts are a CSR matrix of float64 whose columns are in the order in which the n-grams first occurred.
    """
    from scipy import sparse

    words, ends = _rank_words(responses)
    row_ends, keys = _ngram_keys(words, ends, ngrams)
    del words
    distinct, ranks = np.unique(keys, return_inverse=True)
    del keys
    index_type = np.int32 if max(len(distinct), len(ranks)) <= np.iinfo(np.int32).max else np.int64
    ranks = ranks.astype(index_type)
    first_occurrence = np.empty(len(distinct), np.int64)
    first_occurrence[ranks[::-1]] = np.arange(len(ranks) - 1, -1, -1)  # of several assignments the last one stays
    alphabetical = np.argsort(first_occurrence).astype(index_type)
    column = np.empty(len(distinct), index_type)
    column[alphabetical] = np.arange(len(distinct), dtype=index_type)
    counts = sparse.csr_matrix(
        (np.ones(len(ranks)), column[ranks], np.concatenate([[0], row_ends]).astype(index_type)),
        shape=(len(responses), len(distinct)),
    )
    counts.sum_duplicates()
    return counts, alphabetical


def _rank_words(responses: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The words of all responses, each as its rank in alphabetical order from 1, and where each response ends."""
    numbers: dict[str, int] = {}
    words, ends = array("q"), array("q")
    for response in responses:
        words.extend([numbers.setdefault(word, len(numbers)) for word in WORD.findall(response.lower())])
        ends.append(len(words))
    rank = np.empty(len(numbers), np.int64)
    rank[[numbers[word] for word in sorted(numbers)]] = np.arange(1, len(numbers) + 1)
    return rank[np.frombuffer(words, np.int64)], np.frombuffer(ends, np.int64)


def _ngram_keys(
    words: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], ngrams: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each response's n-grams end, and for each n-gram a number that sorts as its string does.

    The n-grams of a response stand together, the shorter ones first.
    """
    fewest, most = ngrams
    lengths = np.diff(ends, prepend=0)
    sizes = np.arange(fewest, most + 1)
    counts = np.clip(lengths[:, None] - sizes + 1, 0, None)  # n-grams by response and size
    blocks = counts.ravel()
    first_word = np.repeat(ends - lengths, len(sizes))  # of each block
    within = np.arange(int(blocks.sum())) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    begins = within + np.repeat(first_word, blocks)
    del within
    size = np.repeat(np.tile(sizes, len(lengths)).astype(np.int8), blocks)
    keys = words[begins]
    base = int(words.max(initial=0)) + 1
    for offset in range(1, most):
        if int(keys.max(initial=0)) > (LARGEST - base) // base:
            keys = np.unique(keys, return_inverse=True)[1]  # smaller numbers in the same order
        keys *= base
        longer = np.flatnonzero(size > offset)
        keys[longer] += words[begins[longer] + offset]
    return np.cumsum(counts.sum(axis=1)), keys
