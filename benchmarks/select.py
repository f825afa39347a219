"""Selection against scikit-learn and a plain loop: the same weights, the same picks.

Larger corpora are the responses again and again with shuffled words. Every turn is a process of its own, so that its
peak memory is its own; nothing else runs beside it.

    python -m benchmarks.select --alpaca FILE --sizes 52000:2600 1000000:50000
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import read_alpaca
from benchmarks.report import Row

NGRAMS, DECAY = (1, 3), 0.1
TURNS = 3
PLAIN_PICKS = 40  # of the plain loop: all of them would take minutes, and each costs the same
COMPARED_UP_TO = 100_000  # responses


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
    """Stands in for scores: what a pick costs does not depend on where they come from."""
    return np.random.default_rng(1).uniform(0.2, 1.0, count)


def whole_selection(responses: Sequence[str], count: int, picks: int) -> dict[str, Any]:
    """TF-IDF and the picks, as the stage makes them."""
    from components.strategies import iterit
    from components.strategies.interface import Budget
    from components.strategies.tfidf import tfidf

    iterit.greedy_select(["some words", "other words"], [0.5, 0.5], 1, decay=DECAY)  # compiled, as after a first run
    texts, complexity = enlarge(responses, count), complexity_of(count)
    begun = time.perf_counter()
    selection = iterit.greedy_select(texts, complexity, picks, decay=DECAY)
    whole = time.perf_counter() - begun
    weights = tfidf(texts, NGRAMS)
    budget = Budget.of(picks, np.zeros(count))
    begun = time.perf_counter()
    limits = (budget.left, budget.tokens, budget.source, budget.owed, budget.room)
    iterit._lazy_greedy(*iterit._first_bounds(weights, complexity), complexity, DECAY, *limits)
    greedy = time.perf_counter() - begun
    return {"seconds": whole, "greedy": greedy, "picks": selection.indices.tolist()}


def scikit_learn_s_fit(responses: Sequence[str], count: int, _picks: int) -> dict[str, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = enlarge(responses, count)
    begun = time.perf_counter()
    TfidfVectorizer(ngram_range=NGRAMS).fit_transform(texts)
    return {"seconds": time.perf_counter() - begun}


def plain_loop(responses: Sequence[str], count: int, picks: int) -> dict[str, Any]:
    """The method's formula: every gain anew for each pick. The first picks, and the time for all of them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    complexity = complexity_of(count)
    weights = TfidfVectorizer(ngram_range=NGRAMS).fit_transform(enlarge(responses, count))
    weights.sort_indices()
    weight = np.ones(weights.shape[1])
    left = np.ones(count, dtype=bool)
    made = []
    begun = time.perf_counter()
    for _ in range(min(picks, PLAIN_PICKS)):
        gains = np.where(left, complexity * (weights @ weight), -1.0)
        best = int(gains.argmax())
        made.append(best)
        left[best] = False
        weight[weights[best].indices] *= DECAY
    return {"seconds": (time.perf_counter() - begun) * picks / len(made), "picks": made}


def _alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run in a fresh process; adds its peak memory in GiB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, arguments))


def _measured(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    found = work(*arguments)
    return {**found, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def run(responses: Sequence[str], count: int, picks: int, turns: int = TURNS) -> list[Row]:
    """The rows of one size; asserts that the picks are the plain loop's."""
    of = f"{count:,} responses, {picks:,} picks"
    if count > COMPARED_UP_TO:
        ours = _alone(whole_selection, responses, count, picks)
        return [
            Row(f"select, {of}: whole selection", ours["seconds"], None, "s", ""),
            Row(f"select, {of}: peak memory", ours["gib"], None, "GiB", "at most 16 GiB"),
        ]
    turn = [
        [_alone(work, responses, count, picks) for work in (whole_selection, scikit_learn_s_fit, plain_loop)]
        for _ in range(turns)
    ]
    for ours, _, plain in turn:
        assert ours["picks"][: len(plain["picks"])] == plain["picks"], "not the plain loop's picks"

    def middle(which: int, name: str) -> float:
        return float(statistics.median(found[which][name] for found in turn))

    return [
        Row(f"select, {of}: greedy against a plain loop", middle(0, "greedy"), middle(2, "seconds"), "s", "300 times"),
        Row(
            f"select, {of}: whole selection against scikit-learn's fit_transform alone",
            middle(0, "seconds"),
            middle(1, "seconds"),
            "s",
            "0.6 of the time",
        ),
        Row(f"select, {of}: peak memory", middle(0, "gib"), None, "GiB", "at most 2 GiB"),
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
