"""The picks, the status and reason of every record, and the next candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from components import select
from components.core.errors import UserError
from components.core.settings.select import SelectSettings
from components.data.records import Message, Record, make_record, to_table
from components.select import (
    HistogramRow,
    SelectSummary,
    histogram,
    next_candidates,
    responses_of,
    select_records,
    summarize,
)
from tests.support.selection import COMPLEXITY, eight_records, scores_of

SETTINGS = SelectSettings(ratio=3, update_ratio=2.0)


@pytest.fixture
def records() -> list[Record]:
    return eight_records()


def column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table[name].to_pylist()
    return values


def test_every_record_of_the_pool_has_a_status_and_a_reason(records: list[Record]) -> None:
    candidates = records[:-1]
    selected = select_records(to_table(records), scores_of(candidates, COMPLEXITY[:-1]), 2, SETTINGS)
    assert selected.rows.tolist() == [2, 6]
    selection = selected.table
    assert column(selection, "id") == [record.id for record in records]
    assert column(selection, "status") == [
        *("eligible", "misaligned", "selected", "unscorable", "eligible", "misaligned", "selected", "not_a_candidate")
    ]
    assert column(selection, "rank") == [None, None, 1, None, None, None, 2, None]
    reasons = column(selection, "reason")
    assert reasons[2] == "selected at rank 1 of 2"
    assert reasons[3] == "the response is empty"
    assert reasons[1] == reasons[5] == select.MISALIGNED
    assert reasons[7] == select.NOT_A_CANDIDATE
    assert all(reasons)
    assert column(selection, "complexity") == [0.2, 1.3, 0.9, None, 0.5, 1.0, 0.7, None]
    score, diversity = column(selection, "score"), column(selection, "diversity")
    assert [row for row, value in enumerate(score) if value is not None] == [2, 6]
    assert score[2] == 0.9 * diversity[2]


def test_the_first_candidates_are_the_picks_then_the_misaligned_then_the_eligible_by_complexity(
    records: list[Record],
) -> None:
    pool, ids = to_table(records), [record.id for record in records]
    selected = select_records(pool, scores_of(records, COMPLEXITY), 2, SETTINGS)
    ranking = [ids[row] for row in (2, 6, 1, 5, 4, 7, 0)]
    assert selected.rows.tolist() == [2, 6]
    for ratio, count in ((1.5, 3), (2.0, 4), (2.99, 5), (3.0, 6), (100.0, 7)):
        assert next_candidates(selected.table, ids, 2, ratio) == ranking[:count]


def test_the_update_ratio_is_the_decimal_number_as_written() -> None:
    ids = [str(number) for number in range(200)]
    selection = pa.table({"id": ids, "status": ["misaligned"] * 200, "rank": [None] * 200, "complexity": [1.0] * 200})
    assert len(next_candidates(selection, ids, 100, 1.15)) == 115  # 1.15 * 100 is 114.99999999999999 in binary


def test_later_iterations_keep_the_candidates(records: list[Record]) -> None:
    pool = to_table(records)
    candidates = [records[row] for row in (6, 2, 1, 4)]
    selected = select_records(pool, scores_of(candidates, [0.4, 0.3, 1.2, 0.8]), 2, SETTINGS)
    assert selected.rows.tolist() == [4, 6]
    ids = [record.id for record in candidates]
    assert next_candidates(selected.table, ids, 2, 2.0) == ids


def test_with_update_ratio_1_the_candidates_are_always_the_whole_pool(records: list[Record]) -> None:
    ids = [record.id for record in records]
    selected = select_records(to_table(records), scores_of(records, COMPLEXITY), 2, SETTINGS)
    assert next_candidates(selected.table, ids, 2, 1.0) == ids


def test_the_responses_are_the_last_messages(records: list[Record]) -> None:
    long = make_record(
        "s", [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    )
    pool = pa.concat_tables([to_table([records[0], long]), to_table(records[1:])])  # two chunks
    assert responses_of(pool, np.array([1, 0, 8])) == ["d", records[0].response, records[7].response]


def test_when_nothing_can_be_selected_the_error_says_why(records: list[Record]) -> None:
    complexity = [1.0, 2.0, None, 1.5, 1.0, 1.0, 1.0, 1.0]
    with pytest.raises(UserError, match=r"none of 8 candidates can be selected: 7 are misaligned .* 1 unscorable"):
        select_records(to_table(records), scores_of(records, complexity), 2, SETTINGS)


def test_a_share_of_the_pool_is_the_decimal_number_as_written() -> None:
    for ratio, pool_size, k in ((0.29, 100, 29), (0.05, 52_002, 2600), (0.1, 9, 0), (1.0, 7, 7), (3, 7, 3)):
        assert SelectSettings(ratio=ratio).records_per_iteration(pool_size) == k


def test_the_summary_counts_and_averages_the_picks(records: list[Record]) -> None:
    pool, scores = to_table(records), scores_of(records, COMPLEXITY)
    selected = select_records(pool, scores, 2, SETTINGS)
    diversity = [value for value in column(selected.table, "diversity") if value is not None]
    score = [value for value in column(selected.table, "score") if value is not None]
    assert summarize(selected.table, pool.take(pa.array(selected.rows)), scores, 2) == SelectSummary(
        pool=8,
        candidates=8,
        k=2,
        selected=2,
        mean_complexity=0.8,
        mean_diversity=round(sum(diversity) / 2, 6),
        mean_score=round(sum(score) / 2, 6),
        sources={"odd": 2},
    )


def test_the_histogram_counts_candidates_and_picks_by_complexity(records: list[Record]) -> None:
    selected = select_records(to_table(records), scores_of(records, COMPLEXITY), 6, SETTINGS)
    bins = histogram("1", selected.table)
    assert len(bins) == 31
    assert [row for row in bins if row.candidates] == [
        HistogramRow("1", "0.20", candidates=1, selected=1),
        HistogramRow("1", "0.50", candidates=2, selected=2),
        HistogramRow("1", "0.70", candidates=1, selected=1),
        HistogramRow("1", "0.90", candidates=1, selected=1),
        HistogramRow("1", "1.00", candidates=1, selected=0),
        HistogramRow("1", "1.30", candidates=1, selected=0),
    ]
