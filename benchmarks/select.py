"""Selection against scikit-learn and a plain loop: the same weights, the same picks.

Larger corpora repeat the responses with shuffled words. Every measurement is a separate process, so that its peak
memory is its own; nothing else runs at the same time.

    python -m benchmarks.select --alpaca FILE --sizes 52000:2600 1000000:50000
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.corpus import read_alpaca
from benchmarks.report import Row

NGRAMS, DECAY = (1, 3), 0.1
TURNS = 3
PLAIN_PICKS = 40  # of the plain loop: all of them would take minutes, and each costs the same
COMPARED_UP_TO = 100_000  # responses


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement."""

    seconds: float
    greedy_seconds: float = 0.0
    """Of the picks alone, without the TF-IDF fit."""
    picks: list[int] = field(default_factory=list)
    peak_gib: float = 0.0


Measurement = Callable[[Sequence[str], int, int], Measured]


def enlarge(responses: Sequence[str], count: int) -> list[str]:
    """`count` responses: the given ones, then the same with shuffled words."""
    random = np.random.default_rng(0)
    texts = list(responses[:count])
    while len(texts) < count:
        for response in responses[: count - len(texts)]:
            words = response.split()
            random.shuffle(words)
            texts.append(" ".join(words))
    return texts


def complexity_of(count: int) -> np.ndarray:
    """Random scores: the cost of a pick does not depend on them."""
    return np.random.default_rng(1).uniform(0.2, 1.0, count)


def whole_selection(responses: Sequence[str], count: int, picks: int) -> Measured:
    """TF-IDF and the picks, as in the stage."""
    from components.strategies import iterit
    from components.strategies.interface import Budget
    from components.strategies.tfidf import tfidf

    iterit.compile_ahead()
    texts, complexity = enlarge(responses, count), complexity_of(count)
    started = time.perf_counter()
    selection = iterit.greedy_select(texts, complexity, picks, decay=DECAY)
    seconds = time.perf_counter() - started
    weights = tfidf(texts, NGRAMS)
    budget = Budget.of(picks, np.zeros(count))
    limits = (budget.left, budget.tokens, budget.source, budget.owed, budget.room)
    started = time.perf_counter()
    iterit.lazy_greedy(weights, complexity, DECAY, *limits)
    return Measured(seconds, time.perf_counter() - started, selection.indices.tolist())


def scikit_learn_fit(responses: Sequence[str], count: int, _picks: int) -> Measured:
    """scikit-learn's TF-IDF alone."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = enlarge(responses, count)
    started = time.perf_counter()
    TfidfVectorizer(ngram_range=NGRAMS).fit_transform(texts)
    return Measured(time.perf_counter() - started)


def plain_loop(responses: Sequence[str], count: int, picks: int) -> Measured:
    """The method's formula, with every gain computed again for each pick: the first picks, and the time for all."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    complexity = complexity_of(count)
    weights = TfidfVectorizer(ngram_range=NGRAMS).fit_transform(enlarge(responses, count))
    weights.sort_indices()
    weight = np.ones(weights.shape[1])
    left = np.ones(count, dtype=bool)
    first_picks: list[int] = []
    started = time.perf_counter()
    for _ in range(min(picks, PLAIN_PICKS)):
        gains = np.where(left, complexity * (weights @ weight), -1.0)
        best = int(gains.argmax())
        first_picks.append(best)
        left[best] = False
        weight[weights[best].indices] *= DECAY
    return Measured((time.perf_counter() - started) * picks / len(first_picks), picks=first_picks)


def _in_new_process(measurement: Measurement, responses: Sequence[str], count: int, picks: int) -> Measured:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_with_peak_memory, (measurement, responses, count, picks))


def _with_peak_memory(measurement: Measurement, responses: Sequence[str], count: int, picks: int) -> Measured:
    measured = measurement(responses, count, picks)
    return replace(measured, peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def run(responses: Sequence[str], count: int, picks: int, turns: int = TURNS) -> list[Row]:
    """The rows of one size; asserts that the picks are the plain loop's."""
    title = f"select, {count:,} responses, {picks:,} picks"
    if count > COMPARED_UP_TO:
        measured = _in_new_process(whole_selection, responses, count, picks)
        return [
            Row(f"{title}: whole selection", measured.seconds, None, "s", ""),
            Row(f"{title}: peak memory", measured.peak_gib, None, "GiB", "at most 16 GiB"),
        ]
    ours, fits, plain = [], [], []
    for _ in range(turns):
        ours.append(_in_new_process(whole_selection, responses, count, picks))
        fits.append(_in_new_process(scikit_learn_fit, responses, count, picks))
        plain.append(_in_new_process(plain_loop, responses, count, picks))
        assert ours[-1].picks[: len(plain[-1].picks)] == plain[-1].picks, "not the plain loop's picks"
    return [
        Row(
            f"{title}: greedy against a plain loop",
            statistics.median(turn.greedy_seconds for turn in ours),
            statistics.median(turn.seconds for turn in plain),
            "s",
            "300 times",
        ),
        Row(
            f"{title}: whole selection against scikit-learn's fit_transform alone",
            statistics.median(turn.seconds for turn in ours),
            statistics.median(turn.seconds for turn in fits),
            "s",
            "0.6 of the time",
        ),
        Row(f"{title}: peak memory", statistics.median(turn.peak_gib for turn in ours), None, "GiB", "at most 2 GiB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.select", description=__doc__.splitlines()[0])
    parser.add_argument("--alpaca", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=["52000:2600"], metavar="RESPONSES:PICKS")
    options = parser.parse_args()
    responses = [record.response for record in read_alpaca(options.alpaca)]
    for size in options.sizes:
        count, picks = map(int, size.split(":"))
        for row in run(responses, count, picks):
            print(row)


if __name__ == "__main__":
    main()
