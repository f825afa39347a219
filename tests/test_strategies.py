"""The lazy greedy picks what the formula says, pick for pick."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from components.settings import SelectSettings
from components.strategies import STRATEGIES
from components.strategies.iterit import greedy_select

GOLDEN = Path(__file__).parent / "golden" / "picks_20.json"


def plain_loop(responses: list[str], complexity: list[float], k: int, decay: float) -> tuple[list[int], list[float]]:
    """The method's formula with every gain computed anew for each pick: indices and scores in pick order."""
    eligible = [index for index, value in enumerate(complexity) if value < 1]
    try:
        tfidf = TfidfVectorizer(ngram_range=(1, 3)).fit_transform([responses[index] for index in eligible])
    except ValueError:  # no words at all, or nothing eligible
        return eligible[:k], [0.0] * len(eligible[:k])
    tfidf.sort_indices()
    weight = np.ones(tfidf.shape[1])
    left, picks, scores = list(range(len(eligible))), [], []
    while left and len(picks) < k:
        diversity = tfidf @ weight
        best = max(left, key=lambda row: (complexity[eligible[row]] * diversity[row], -row))
        left.remove(best)
        picks.append(eligible[best])
        scores.append(float(complexity[eligible[best]] * diversity[best]))
        weight[tfidf[best].indices] *= decay
    return picks, scores


WORDS = ["alpha", "beta", "gamma", "delta", "Alpha", "x", "der", "слово", "漢字", "كلمة", "é", "_", "a1", "!"]
responses_of_few_words = st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join)
any_text = st.text(max_size=20)
complexities = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.999, 1.0, 1.5]), st.floats(0, 1.25, width=32))


@settings(max_examples=250, deadline=None)
@given(
    corpus=st.lists(st.tuples(st.one_of(responses_of_few_words, any_text), complexities), min_size=1, max_size=25),
    k=st.integers(1, 30),
    decay=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
)
def test_the_lazy_greedy_picks_exactly_what_the_plain_loop_picks(
    corpus: list[tuple[str, float]], k: int, decay: float
) -> None:
    responses, complexity = [text for text, _ in corpus], [value for _, value in corpus]
    selection = greedy_select(responses, complexity, k, decay=decay)
    picks, scores = plain_loop(responses, complexity, k, decay)
    assert selection.indices.tolist() == picks
    assert selection.score.tolist() == scores  # to the last bit
    assert selection.complexity.tolist() == [complexity[pick] for pick in picks]
    np.testing.assert_array_equal(selection.complexity * selection.diversity, selection.score)


@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
def test_on_a_larger_corpus_with_shared_phrases_as_well(decay: float) -> None:
    random = np.random.default_rng(5)
    words = [f"word{number}" for number in random.zipf(1.4, 6000) % 300]
    ends = np.cumsum(random.integers(1, 40, 250))
    responses = [" ".join(words[first:last]) for first, last in pairwise(ends)]
    complexity = random.uniform(0.3, 1.05, len(responses)).tolist()
    picks, _ = plain_loop(responses, complexity, 60, decay)
    assert greedy_select(responses, complexity, 60, decay=decay).indices.tolist() == picks


def test_twenty_records_are_picked_in_the_order_on_file() -> None:
    """Made by the plain loop above; the file's numbers change only when the method does."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for decay, wanted in golden["picks"].items():
        selection = greedy_select(golden["responses"], golden["complexity"], 8, decay=float(decay))
        assert selection.indices.tolist() == wanted["indices"]
        np.testing.assert_allclose(selection.score, wanted["scores"], rtol=1e-12)


def test_identical_responses_are_picked_from_the_lowest_index_and_only_once_each() -> None:
    selection = greedy_select(["same old words"] * 6, [0.5] * 6, 4, decay=1.0)
    assert selection.indices.tolist() == [0, 1, 2, 3]


def test_decay_0_leaves_a_repeated_response_without_gain() -> None:
    selection = greedy_select(["same words", "same words", "other words here"], [0.9, 0.9, 0.1], 3, decay=0.0)
    assert selection.indices.tolist()[:2] == [0, 2]
    assert selection.score[-1] == 0


def test_fewer_eligible_than_k_gives_fewer_picks() -> None:
    selection = greedy_select(["one word", "two words", "three words"], [0.5, 1.0, float("nan")], 3, decay=0.1)
    assert selection.indices.tolist() == [0]


def test_nothing_eligible_gives_no_pick() -> None:
    assert len(greedy_select(["one word"], [1.0], 3, decay=0.1)) == 0
    assert len(greedy_select([], [], 3, decay=0.1)) == 0


def test_misaligned_responses_take_no_part_in_the_fit() -> None:
    responses = ["rare gem stone", "plain grey stone", "rare gem stone rare gem"]
    with_them = greedy_select(responses, [0.5, 0.4, 1.2], 2, decay=0.1)
    without = greedy_select(responses[:2], [0.5, 0.4], 2, decay=0.1)
    np.testing.assert_array_equal(with_them.score, without.score)


def test_every_strategy_that_the_settings_allow_is_registered() -> None:
    allowed = SelectSettings.model_json_schema()["properties"]["strategy"]
    assert set(allowed.get("enum", [allowed.get("const")])) == set(STRATEGIES)


def test_the_decay_of_the_settings_reaches_the_picks() -> None:
    responses, complexity = ["same words", "same words", "other words here"], np.array([0.9, 0.9, 0.1])
    picks = STRATEGIES["iterit"](responses, complexity, 2, SelectSettings(diversity_decay=0.0))
    assert picks.indices.tolist() == [0, 2]
