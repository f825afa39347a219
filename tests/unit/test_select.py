"""The subset, the reasons, and what the next iteration scores."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from components import select
from components.core.errors import UserError
from components.core.settings.select import SelectSettings
from components.data import tables
from components.data.records import Message, Record, make_record, read_records, to_table, write_records
from components.select import next_candidates, responses_of, select_records

SETTINGS = SelectSettings(ratio=3, update_ratio=2.0)
# complexity of each pool record; None is unscorable
COMPLEXITY = [0.2, 1.3, 0.9, None, 0.5, 1.0, 0.7, 0.5]


@pytest.fixture
def records() -> list[Record]:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    return [
        make_record(
            "even" if number % 2 else "odd",
            [Message("user", f"Say {word}."), Message("assistant", f"Here is {word}, said once.")],
            {"line": number},
        )
        for number, word in enumerate(words)
    ]


def scores_of(records: list[Record], complexity: list[float | None]) -> pa.Table:
    return pa.table(
        {
            "id": [record.id for record in records],
            "response_tokens": [5] * len(records),
            "nll_conditional": complexity,
            "nll_unconditional": complexity,
            "complexity": complexity,
            "reason": [None if value is not None else "the response is empty" for value in complexity],
        },
        schema=tables.SCORES,
    )


def column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table[name].to_pylist()
    return values


def test_every_record_of_the_pool_has_a_status_and_a_reason(records: list[Record]) -> None:
    candidates = records[:-1]
    selection, picked = select_records(to_table(records), scores_of(candidates, COMPLEXITY[:-1]), 2, SETTINGS)
    assert column(selection, "id") == [record.id for record in records]
    assert column(selection, "status") == [
        *("eligible", "misaligned", "selected", "unscorable", "eligible", "misaligned", "selected", "not_a_candidate")
    ]
    assert column(selection, "rank") == [None, None, 1, None, None, None, 2, None]
    assert picked.tolist() == [2, 6]
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
    selection, picked = select_records(pool, scores_of(records, COMPLEXITY), 2, SETTINGS)
    ranking = [ids[place] for place in (2, 6, 1, 5, 4, 7, 0)]
    assert picked.tolist() == [2, 6]
    for ratio, count in ((1.5, 3), (2.0, 4), (2.99, 5), (3.0, 6), (100.0, 7)):
        assert next_candidates(selection, ids, 2, ratio) == ranking[:count]


def test_the_ratio_is_taken_as_it_is_written(records: list[Record]) -> None:
    ids = [str(number) for number in range(200)]
    selection = pa.table({"id": ids, "status": ["misaligned"] * 200, "rank": [None] * 200, "complexity": [1.0] * 200})
    assert len(next_candidates(selection, ids, 100, 1.15)) == 115  # 1.15 * 100 is 114.99999999999999 in binary


def test_later_iterations_carry_the_candidates_over_unchanged(records: list[Record]) -> None:
    pool = to_table(records)
    candidates = [records[place].id for place in (6, 2, 1, 4)]
    selection, picked = select_records(
        pool, scores_of([records[place] for place in (6, 2, 1, 4)], [0.4, 0.3, 1.2, 0.8]), 2, SETTINGS
    )
    assert picked.tolist() == [4, 6]
    assert next_candidates(selection, candidates, 2, 2.0) == candidates


def test_update_ratio_1_scores_the_whole_pool_every_time(records: list[Record]) -> None:
    ids = [record.id for record in records]
    selection, _ = select_records(to_table(records), scores_of(records, COMPLEXITY), 2, SETTINGS)
    assert next_candidates(selection, ids, 2, 1.0) == ids


def test_the_responses_are_the_last_messages(records: list[Record]) -> None:
    long = make_record(
        "s", [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    )
    pool = pa.concat_tables([to_table([records[0], long]), to_table(records[1:])])  # two chunks
    assert responses_of(pool, np.array([1, 0, 8])) == ["d", records[0].response, records[7].response]


def test_nothing_to_select_is_a_user_s_error(records: list[Record]) -> None:
    complexity = [1.0, 2.0, None, 1.5, 1.0, 1.0, 1.0, 1.0]
    with pytest.raises(UserError, match=r"none of 8 candidates can be selected: 7 are misaligned .* 1 unscorable"):
        select_records(to_table(records), scores_of(records, complexity), 2, SETTINGS)


def set_ratio(ratio: str) -> None:
    params = (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(re.sub(r"\n  ratio: \S+", f"\n  ratio: {ratio}", params), encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    set_ratio("6")
    write_records(Path("pool.parquet"), records)
    tables.write(Path("scores.parquet"), scores_of(records, COMPLEXITY), tables.SCORES)
    ids = pa.table({"id": [record.id for record in records]})
    tables.write(Path("base.parquet"), ids, tables.CANDIDATES)
    return tmp_path


ARGUMENTS = [
    *("--iteration", "1", "--pool", "pool.parquet", "--scores", "scores.parquet", "--parent-candidates"),
    *("base.parquet", "--selection", "selection.parquet", "--subset", "subset.parquet", "--candidates"),
    *("candidates.parquet", "--metrics", "metrics.json", "--histogram", "complexity.csv"),
]


def run_stage(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from components import select; select.main(); assert 'torch' not in sys.modules"
    return subprocess.run([sys.executable, "-c", code, *ARGUMENTS], cwd=folder, capture_output=True, text=True)


def test_the_stage_writes_the_subset_in_pick_order_says_that_it_is_short_and_needs_no_torch(
    project: Path, records: list[Record]
) -> None:
    done = run_stage(project)
    assert done.returncode == 0, done.stderr
    assert "select@1: 5 of 8 candidates (asked for 6; no more are eligible)" in done.stdout
    selection = tables.read(Path("selection.parquet"), tables.SELECTION)
    ranked = sorted(
        (rank, key) for rank, key in zip(column(selection, "rank"), column(selection, "id"), strict=True) if rank
    )
    subset = read_records(Path("subset.parquet"))
    assert [record.id for record in subset] == [key for _, key in ranked]
    assert all(record in records for record in subset)
    metrics = json.loads(Path("metrics.json").read_text(encoding="utf-8"))
    assert (metrics["pool"], metrics["candidates"], metrics["k"], metrics["selected"]) == (8, 8, 6, 5)
    assert metrics["sources"] == {"even": 1, "odd": 4}
    assert metrics["mean_complexity"] == 0.56
    with Path("complexity.csv").open(encoding="utf-8") as file:
        bins = list(csv.DictReader(file))
    assert len(bins) == 31
    counted = {row["complexity"]: (row["candidates"], row["selected"]) for row in bins if row["candidates"] != "0"}
    assert counted == {
        "0.20": ("1", "1"),
        "0.50": ("2", "2"),
        "0.70": ("1", "1"),
        "0.90": ("1", "1"),
        "1.00": ("1", "0"),
        "1.30": ("1", "0"),
    }
    written = {path.name: path.read_bytes() for path in project.iterdir() if path.is_file()}
    assert len(written) == 9
    assert run_stage(project).returncode == 0
    assert {path.name: path.read_bytes() for path in project.iterdir() if path.is_file()} == written


def test_a_pool_too_small_for_the_ratio_is_a_user_s_error(project: Path) -> None:
    set_ratio("0.1")
    done = run_stage(project)
    assert done.returncode == 2
    assert done.stderr == "error: params.yaml: select.ratio: 0.1 of 8 records is not one record\n"
    assert not Path("subset.parquet").exists()


def test_a_share_of_the_pool_is_taken_as_it_is_written() -> None:
    for ratio, pool_size, k in ((0.29, 100, 29), (0.05, 52_002, 2600), (0.1, 9, 0), (1.0, 7, 7), (3, 7, 3)):
        assert SelectSettings(ratio=ratio).records_per_iteration(pool_size) == k
