"""Intervals hold what they promise: compared with SciPy where it has the case, and by simulation with fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from components.evaluation.statistics import Interval, detectable_difference, difference_interval, weighted_interval


def test_equal_weights_give_the_textbook_interval_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(size=40)
    interval = weighted_interval(values, np.full(40, 7.0))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.mean - interval.half_width(0.95) == pytest.approx(expected.low)
    assert interval.mean + interval.half_width(0.95) == pytest.approx(expected.high)
    one_sided = stats.ttest_1samp(values, 0, alternative="greater").confidence_interval(0.9)
    assert interval.lower_bound(0.9) == pytest.approx(one_sided.low)


def test_weights_are_those_of_tokens() -> None:
    interval = weighted_interval([1.0, 4.0], [300, 100])
    assert interval.mean == pytest.approx((300 * 1.0 + 100 * 4.0) / 400)
    assert weighted_interval([2.0, 2.0, 2.0], [1, 5, 9]).standard_error == 0


@pytest.mark.parametrize("records", [24, 200])
def test_the_two_sided_interval_holds_the_true_loss_of_a_corpus_as_often_as_it_says(records: int) -> None:
    random = np.random.default_rng(2)
    tokens = random.lognormal(4, 0.8, size=20_000).round() + 1
    losses = 2 + random.normal(scale=0.7, size=20_000) + 10 / tokens  # short responses are harder
    true = (tokens * losses).sum() / tokens.sum()
    hits = 0
    for _ in range(400):
        chosen = random.integers(0, len(tokens), records)
        interval = weighted_interval(losses[chosen], tokens[chosen])
        hits += abs(interval.mean - true) <= interval.half_width(0.95)
    assert 0.91 <= hits / 400 <= 0.985


def test_the_difference_of_two_models_is_paired() -> None:
    random = np.random.default_rng(4)
    tokens, hard = random.integers(5, 200, 30), random.normal(3, 1, 30)
    first, second = hard + random.normal(0.1, 0.05, 30), hard
    paired = difference_interval((first, tokens), (second, tokens))
    assert paired.mean == pytest.approx(weighted_interval(first - second, tokens).mean)
    assert paired.standard_error == pytest.approx(weighted_interval(first - second, tokens).standard_error)
    assert paired.standard_error < weighted_interval(first, tokens).standard_error / 5


def test_two_tokenizers_have_weights_of_their_own() -> None:
    """The standard error is the jackknife's, by its definition: the difference again without each record."""
    random = np.random.default_rng(5)
    first, second = ((random.normal(2, 1, 12), random.integers(1, 90, 12).astype(float)) for _ in range(2))

    def difference(kept: list[int]) -> float:
        (a, n), (b, m) = ((values[kept], weights[kept]) for values, weights in (first, second))
        return float((a * n).sum() / n.sum() - (b * m).sum() / m.sum())

    everything = list(range(12))
    left_out = [difference([index for index in everything if index != out]) for out in everything]
    interval = difference_interval(first, second)
    assert interval.mean == pytest.approx(difference(everything))
    squares = sum((without - interval.mean) ** 2 for without in left_out)
    assert interval.standard_error == pytest.approx(math.sqrt(11 / 12 * squares))


def test_one_record_says_nothing_and_none_is_an_error() -> None:
    lonely = weighted_interval([3.0], [10])
    assert (lonely.mean, lonely.lower_bound(0.95), lonely.half_width(0.95)) == (3.0, -math.inf, math.inf)
    with pytest.raises(ValueError, match="no record"):
        weighted_interval([], [])


def test_a_detectable_difference_is_detected_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    spread, records = 0.3, 150
    known = Interval(0.0, spread / math.sqrt(records), records)
    difference = detectable_difference(known, 0.95, power=0.8)
    found = sum(
        weighted_interval(random.normal(difference, spread, records), np.ones(records)).lower_bound(0.95) > 0
        for _ in range(400)
    )
    assert 0.74 <= found / 400 <= 0.86
