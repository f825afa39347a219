"""Every strategy picks what its definition says; the lazy greedy picks what the plain loop picks, pick for pick."""

from __future__ import annotations

import inspect
import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from components.core.errors import UserError
from components.core.settings.select import SelectSettings
from components.select import make_budget
from components.strategies import STRATEGIES, load_strategy
from components.strategies import tfidf as tfidf_module
from components.strategies.interface import Budget, Candidates
from components.strategies.iterit import greedy_select
from components.strategies.tfidf import tfidf

GOLDEN = Path(__file__).parents[1] / "golden" / "picks_20.json"


def plain_loop(responses: list[str], complexity: list[float], k: int, decay: float) -> tuple[list[int], list[float]]:
    """The method's formula, with every gain computed again for each pick: indices and scores in pick order."""
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
    np.testing.assert_array_equal(np.array(complexity)[picks] * selection.diversity, selection.score)


@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
def test_the_picks_are_the_plain_loop_s_on_a_larger_corpus_with_shared_phrases(decay: float) -> None:
    random = np.random.default_rng(5)
    words = [f"word{number}" for number in random.zipf(1.4, 6000) % 300]
    ends = np.cumsum(random.integers(1, 40, 250))
    responses = [" ".join(words[first:last]) for first, last in pairwise(ends)]
    complexity = random.uniform(0.3, 1.05, len(responses)).tolist()
    picks, _ = plain_loop(responses, complexity, 60, decay)
    assert greedy_select(responses, complexity, 60, decay=decay).indices.tolist() == picks


def test_the_picks_of_twenty_records_are_those_on_file() -> None:
    """The file was written by the plain loop above; its numbers change only when the method does."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for decay, wanted in golden["picks"].items():
        selection = greedy_select(golden["responses"], golden["complexity"], 8, decay=float(decay))
        assert selection.indices.tolist() == wanted["indices"]
        np.testing.assert_allclose(selection.score, wanted["scores"], rtol=1e-12)


def test_identical_responses_are_picked_once_each_from_the_lowest_index_on() -> None:
    selection = greedy_select(["same old words"] * 6, [0.5] * 6, 4, decay=1.0)
    assert selection.indices.tolist() == [0, 1, 2, 3]


def test_with_decay_0_a_repeated_response_has_no_gain() -> None:
    selection = greedy_select(["same words", "same words", "other words here"], [0.9, 0.9, 0.1], 3, decay=0.0)
    assert selection.indices.tolist()[:2] == [0, 2]
    assert selection.score[-1] == 0


def test_fewer_eligible_records_than_k_give_fewer_picks() -> None:
    selection = greedy_select(["one word", "two words", "three words"], [0.5, 1.0, float("nan")], 3, decay=0.1)
    assert selection.indices.tolist() == [0]


def test_no_eligible_record_gives_no_pick() -> None:
    assert len(greedy_select(["one word"], [1.0], 3, decay=0.1)) == 0
    assert len(greedy_select([], [], 3, decay=0.1)) == 0


def test_misaligned_responses_are_not_part_of_the_fit() -> None:
    responses = ["rare gem stone", "plain grey stone", "rare gem stone rare gem"]
    with_misaligned = greedy_select(responses, [0.5, 0.4, 1.2], 2, decay=0.1)
    without_misaligned = greedy_select(responses[:2], [0.5, 0.4], 2, decay=0.1)
    np.testing.assert_array_equal(with_misaligned.score, without_misaligned.score)


def test_every_strategy_that_the_settings_allow_is_registered_and_can_be_loaded() -> None:
    allowed = SelectSettings.model_json_schema()["properties"]["strategy"]
    assert set(allowed["enum"]) == set(STRATEGIES)
    assert all(inspect.isfunction(load_strategy(name)) for name in STRATEGIES)


def test_the_picks_follow_the_decay_of_the_settings() -> None:
    candidates = make_candidates(["same words", "same words", "other words here"], [0.9, 0.9, 0.1])
    picks = load_strategy("iterit")(candidates, budget_of(2, 3), SelectSettings(diversity_decay=0.0))
    assert picks.indices.tolist() == [0, 2]


# --- TF-IDF -----------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    responses=st.lists(st.one_of(responses_of_few_words, any_text), min_size=1, max_size=20),
    ngrams=st.sampled_from([(1, 3), (1, 1), (2, 3), (1, 5)]),
)
def test_tfidf_is_scikit_learn_s_to_the_last_bit(responses: list[str], ngrams: tuple[int, int]) -> None:
    assert_is_scikit_learn_s(responses, ngrams)


def test_tfidf_of_real_docstrings_is_scikit_learn_s() -> None:
    responses = [inspect.getdoc(member) or "" for module in (json, inspect, re) for member in vars(module).values()]
    assert_is_scikit_learn_s([*responses, "İstanbul STRASSE straße", "x" * 5000, "a b c " * 400], (1, 3))


def test_tfidf_is_scikit_learn_s_when_there_are_too_many_words_for_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfidf_module, "LARGEST", 1000)
    assert_is_scikit_learn_s(["alpha beta gamma delta " * 3, "beta alpha", "delta gamma beta alpha"] * 3, (1, 3))


def assert_is_scikit_learn_s(responses: list[str], ngrams: tuple[int, int]) -> None:
    ours = tfidf(responses, ngrams)
    try:
        theirs = TfidfVectorizer(ngram_range=ngrams).fit_transform(responses)
    except ValueError:  # no words at all
        assert ours.shape == (len(responses), 0)
        return
    theirs.sort_indices()
    assert ours.shape == theirs.shape
    for part in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(ours, part), getattr(theirs, part))


# --- budgets ----------------------------------------------------------------------------------------------------------


def make_candidates(
    responses: list[str], complexity: list[float], nll_conditional: list[float] | None = None
) -> Candidates:
    ids = [f"{number:03}" for number in range(len(responses))]
    values = np.array(complexity, float)
    return Candidates(ids, responses, values, np.array(nll_conditional or complexity, float), np.isfinite(values))


def budget_of(records: int, count: int) -> Budget:
    return Budget.of(records, np.ones(count))


@settings(max_examples=150, deadline=None)
@given(
    corpus=st.lists(
        st.tuples(responses_of_few_words, complexities, st.integers(1, 9), st.sampled_from("ab")),
        min_size=2,
        max_size=20,
    ),
    k=st.integers(1, 12),
    shares=st.tuples(st.sampled_from([0.0, 0.25, 0.5]), st.sampled_from([0.5, 0.75, 1.0])),
    tokens=st.one_of(st.none(), st.integers(1, 60)),
)
def test_budgets_and_quotas_are_kept_as_in_the_plain_loop(
    corpus: list[tuple[str, float, int, str]], k: int, shares: tuple[float, float], tokens: int | None
) -> None:
    responses, complexity, costs, sources = (list(column) for column in zip(*corpus, strict=True))
    candidates = make_candidates(responses, complexity)
    if tokens is None and "a" in sources:
        chosen = SelectSettings(quotas={"a": {"min_share": shares[0], "max_share": shares[1]}})
        budget = make_budget(candidates, sources, np.array(costs), k, chosen)
        aligned = sum(value < 1 for value, source in zip(complexity, sources, strict=True) if source == "a")
        most = math.floor(shares[1] * k)
        owed, room, left = min(math.ceil(shares[0] * k), aligned, most), most, math.inf
    else:
        budget = make_budget(candidates, sources, np.array(costs), k, SelectSettings(tokens=tokens))
        budget.left[0] = k
        owed, room, left = 0, math.inf, tokens or math.inf
    picks = load_strategy("iterit")(candidates, budget, SelectSettings(diversity_decay=0.5)).indices.tolist()

    order, expected = plain_loop(responses, complexity, len(responses), 0.5)[0], []
    while len(expected) < k:
        # the best candidate that the budget allows, with every gain computed again
        order = plain_order(responses, complexity, expected, 0.5)
        allowed = [
            row
            for row in order
            if costs[row] <= left
            and (room > 0 if sources[row] == "a" else True)
            and (sources[row] == "a" or k - len(expected) > owed)
        ]
        if not allowed:
            break
        expected.append(allowed[0])
        left -= costs[allowed[0]]
        if sources[allowed[0]] == "a":
            owed, room = max(owed - 1, 0), room - 1
    assert picks == expected


def plain_order(responses: list[str], complexity: list[float], picked: list[int], decay: float) -> list[int]:
    """The eligible records that are left, by descending gain."""
    eligible = [row for row, value in enumerate(complexity) if value < 1]
    try:
        weights = TfidfVectorizer(ngram_range=(1, 3)).fit_transform([responses[row] for row in eligible])
    except ValueError:
        return [row for row in eligible if row not in picked]
    weights.sort_indices()
    weight = np.ones(weights.shape[1])
    for row in picked:
        weight[weights[eligible.index(row)].indices] *= decay
    gains = np.array([complexity[row] for row in eligible]) * (weights @ weight)
    return [eligible[row] for row in np.argsort(-gains, kind="stable") if eligible[row] not in picked]


def test_a_quota_of_an_unknown_source_is_an_error_that_names_it() -> None:
    chosen = SelectSettings(quotas={"nowhere": {"max_share": 0.5}})
    with pytest.raises(UserError, match=r"select\.quotas\.nowhere: no candidate is from that source; there are here"):
        make_budget(make_candidates(["a b"], [0.5]), ["here"], np.array([3]), 1, chosen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quotas": {"a": {"min_share": 0.6, "max_share": 0.5}}}, "min_share 0.6 is above max_share 0.5"),
        ({"quotas": {"a": {"min_share": 0.6}, "b": {"min_share": 0.6}}}, "add up to 1.2"),
        ({"quotas": {"a": {"min_share": 0.6}}, "tokens": 100}, "leave select.tokens out"),
        ({"perplexity_range": [0.6, 0.4]}, "must be below"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectSettings(**changes)


# --- the other strategies ---------------------------------------------------------------------------------------------

NAN = float("nan")
WORDY = ["red apple tree", "red apple pie", "blue ocean wave", "green forest path deep", "red apple tree"]


def picks_of(
    strategy: str, candidates: Candidates, k: int, tokens: list[int] | None = None, **changes: Any
) -> list[int]:
    budget = Budget.of(k, np.array(tokens or [1] * len(candidates)))
    selection = load_strategy(strategy)(candidates, budget, SelectSettings(strategy=strategy, **changes))
    assert len(selection.score) == len(selection.diversity) == len(selection)
    picks: list[int] = selection.indices.tolist()
    return picks


def test_ifd_picks_the_highest_complexity_below_1_the_lower_index_first() -> None:
    candidates = make_candidates(WORDY, [0.5, 1.2, 0.9, NAN, 0.5])
    assert picks_of("ifd", candidates, 3) == [2, 0, 4]
    assert picks_of("superfiltering", candidates, 3) == [2, 0, 4]


def test_random_picks_depend_on_the_seed_and_not_on_other_records() -> None:
    many = make_candidates(["some words"] * 40, [0.5, 1.5] * 20)
    few = make_candidates(["some words"] * 30, [0.5, 1.5] * 15)
    picks = picks_of("random", many, 40)
    assert sorted(picks) == list(range(40))  # misaligned records, too
    assert [pick for pick in picks if pick < 30] == picks_of("random", few, 30)
    assert picks_of("random", many, 40, seed=1) != picks


def test_longest_picks_the_most_response_tokens() -> None:
    candidates = make_candidates(WORDY, [0.5, 1.2, 0.9, NAN, 0.5])
    assert picks_of("longest", candidates, 3, tokens=[5, 9, 7, 99, 7]) == [1, 2, 4]


def test_perplexity_picks_from_the_middle_of_the_range() -> None:
    candidates = make_candidates(WORDY, [0.5] * 5, nll_conditional=[5.0, 1.0, 3.0, 2.0, 4.0])
    assert picks_of("perplexity", candidates, 5, perplexity_range=[0.25, 0.75]) == [2, 3, 4]
    assert picks_of("perplexity", candidates, 1, perplexity_range=[0.0, 0.25]) == [1]


def test_full_picks_every_scorable_record_whatever_the_budget() -> None:
    assert picks_of("full", make_candidates(WORDY, [0.5, 1.2, 0.9, NAN, 0.5]), 1) == [0, 1, 2, 4]


def test_deita_style_leaves_out_records_too_similar_to_a_pick() -> None:
    candidates = make_candidates(WORDY, [0.9, 0.8, 0.3, 0.2, 0.85])
    assert picks_of("deita-style", candidates, 5, max_similarity=0.9) == [0, 1, 2, 3]
    assert picks_of("deita-style", candidates, 5, max_similarity=0.1) == [0, 2, 3]


def test_k_center_begins_with_the_highest_complexity_and_then_picks_the_farthest() -> None:
    candidates = make_candidates(WORDY, [0.9, 0.8, 0.3, 1.1, 0.85])
    assert picks_of("k-center", candidates, 5) == [3, 0, 2, 1, 4]


@settings(max_examples=60, deadline=None)
@given(responses=st.lists(responses_of_few_words, min_size=2, max_size=12), k=st.integers(1, 6))
def test_facility_location_picks_the_largest_gain_each_time(responses: list[str], k: int) -> None:
    weights = tfidf(responses, (1, 3))
    cosine = (weights @ weights.T).toarray()
    picks = picks_of("facility-location", make_candidates(responses, [0.5] * len(responses)), k)
    nearest = np.zeros(len(responses))
    for number, pick in enumerate(picks):
        gains = np.maximum(cosine - nearest, 0).sum(axis=1)
        gains[picks[:number]] = -1
        assert gains[pick] == pytest.approx(gains.max(), abs=1e-9)
        nearest = np.maximum(nearest, cosine[pick])
    assert len(set(picks)) == len(picks) == min(k, len(responses))


def of_sources(count: int, sources: list[int], iteration: int) -> tuple[Candidates, Budget]:
    """Candidates without losses, and a budget of `count` records that knows their sources."""
    rows = len(sources)
    nothing = np.full(rows, np.nan)
    candidates = Candidates(
        [f"id{row}" for row in range(rows)], ["text"] * rows, nothing, nothing, np.ones(rows, bool), iteration
    )
    return candidates, replace(
        Budget.of(count, np.zeros(rows)), source=np.array(sources), owed=np.zeros(2, np.int64), room=np.full(2, 99)
    )


def test_random_fresh_uses_every_record_once_before_it_uses_one_again() -> None:
    picks = []
    for iteration in range(1, 6):
        candidates, budget = of_sources(4, [0] * 10, iteration)
        picks += load_strategy("random-fresh")(candidates, budget, SelectSettings()).indices.tolist()
    assert sorted(picks[:10]) == list(range(10))
    assert picks[10:] == picks[:10]


def test_random_fresh_does_not_depend_on_candidates_that_rank_behind() -> None:
    """After the first iteration only some records are candidates; the picks of the first are among them."""
    first, budget = of_sources(4, [0] * 10, 1)
    used = load_strategy("random-fresh")(first, budget, SelectSettings()).indices.tolist()
    others = [row for row in range(10) if row not in used]
    second, budget = of_sources(4, [0] * 8, 2)
    kept = [*used, *others[:4]]
    second = replace(second, ids=[f"id{row}" for row in kept])
    picks = load_strategy("random-fresh")(second, budget, SelectSettings()).indices.tolist()
    assert sorted(kept[row] for row in picks) == sorted(others[:4])


def test_random_balanced_takes_equally_many_records_of_each_source_while_there_are_some() -> None:
    sources = [0] * 20 + [1] * 3
    candidates, budget = of_sources(8, sources, 1)
    picks = load_strategy("random-balanced")(candidates, budget, SelectSettings()).indices.tolist()
    assert [sources[row] for row in picks].count(1) == 3
    assert len(picks) == 8
    candidates, budget = of_sources(4, sources, 1)
    picks = load_strategy("random-balanced")(candidates, budget, SelectSettings()).indices.tolist()
    assert [sources[row] for row in picks].count(1) == 2


def test_a_cap_leaves_out_the_hardest_of_the_aligned() -> None:
    values = np.array([0.1, 0.9, 0.5, 0.95, 1.2])
    candidates = Candidates(list("abcde"), list("abcde"), values, values, values > 0, highest=0.9)
    assert load_strategy("ifd")(candidates, Budget.of(5, np.zeros(5)), SelectSettings()).indices.tolist() == [1, 2, 0]
