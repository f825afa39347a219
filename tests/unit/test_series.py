"""The series of the plots: overlap of the picks, newly hard records, sources and lengths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from components.series.composition import length_class, length_rows, source_rows
from components.series.picks import HardRow, OverlapRow, PickRow, hard_rows, overlap_rows, pick_rows


def test_picks_are_compared_with_the_iteration_before_and_with_all_earlier_ones() -> None:
    picks = {1: ["a", "b"], 2: ["b", "c"], 3: ["a", "d"]}
    assert pick_rows(picks) == [PickRow(1, 2, 0, 2, 2), PickRow(2, 2, 1, 1, 3), PickRow(3, 2, 0, 1, 4)]


def test_the_share_of_an_overlap_is_of_the_picks_of_its_row() -> None:
    rows = overlap_rows({1: ["a"], 2: ["a", "b"], 3: []})
    assert rows == [
        OverlapRow(1, 1, 1, 1.0),
        OverlapRow(1, 2, 1, 1.0),
        OverlapRow(2, 1, 1, 0.5),
        OverlapRow(2, 2, 2, 1.0),
    ]


def test_a_record_is_newly_hard_only_if_both_iterations_scored_it() -> None:
    before = {"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.2}
    now = {"a": 0.7, "c": 0.95, "d": 0.1, "e": 0.99}  # b is no candidate any more, e was none
    assert hard_rows({1: before, 2: now}, {1: 2, 2: 2}) == [HardRow(2, 3, 2, 1, 0.5)]


def test_a_misaligned_record_is_not_hard() -> None:
    assert hard_rows({1: {"a": 0.9, "b": 0.5}, 2: {"a": 1.2, "b": 0.4}}, {1: 1, 2: 1}) == [HardRow(2, 2, 1, 1, 1.0)]


def test_iterations_without_scores_have_no_hard_records() -> None:
    assert hard_rows({1: {}, 2: {}}, {1: 2, 2: 2}) == []


def test_sources_are_those_of_the_pool_and_the_largest_is_first() -> None:
    rows = source_rows({"a": "x", "b": "y", "c": "y"}, {1: ["a"], 2: []})
    assert [(row.iteration, row.source, row.pool, row.selected) for row in rows] == [
        *((1, "y", 2, 0), (1, "x", 1, 1)),
        *((2, "y", 2, 0), (2, "x", 1, 0)),
    ]


def test_classes_of_lengths_have_no_gap() -> None:
    rows = length_rows({1: {"a": 0, "b": 1, "c": 9}}, {1: ["c"]})
    assert [(row.tokens, row.candidates, row.selected) for row in rows] == [
        *((0, 1, 0), (1, 1, 0), (2, 0, 0), (4, 0, 0), (8, 1, 1))
    ]


@given(st.integers(1, 10**6))
def test_a_length_lies_in_its_class(tokens: int) -> None:
    assert length_class(tokens) <= tokens < 2 * length_class(tokens)
