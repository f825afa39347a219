"""What a cell's checkpoint was measured by, one row per measure and record: the material of every comparison.

A measure's mean is weighted: sum(weight x value) / sum(weight) over its records.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from components.data import tables

HOLDOUT_LOSS, TARGET_LOSS, ROUGE_L = "holdout loss", "target loss", "ROUGE-L"


def read_measures(folder: Path, checkpoint: str) -> pa.Table:
    """tables.MEASURES of a checkpoint (`base`, or an iteration) in the project folder `folder`.

    Targets, answers and benchmarks are in it where there are any. Raises UserError when a table is missing.
    """
    file = f"{checkpoint}.parquet"
    measures = [
        _losses(HOLDOUT_LOSS, tables.read(folder / "data/evaluations" / file, tables.EVALUATIONS)),
        _losses(TARGET_LOSS, tables.read(folder / "data/target_evaluations" / file, tables.EVALUATIONS)),
        _answers(tables.read(folder / "data/answers" / file, tables.ANSWERS)),
    ]
    documents = folder / "data/benchmarks" / file
    if documents.is_file():
        measures.append(_benchmarks(tables.read(documents, tables.BENCHMARKS)))
    return pa.concat_tables(measures)


def _losses(name: str, evaluations: pa.Table) -> pa.Table:
    scorable = evaluations.filter(pc.is_valid(evaluations["complexity"]))
    return _table(
        measure=pa.array([name] * scorable.num_rows, pa.string()),
        id=scorable["id"],
        value=scorable["nll_conditional"],
        weight=scorable["tokens"],
        higher_is_better=pa.array([False] * scorable.num_rows, pa.bool_()),
    )


def _answers(answers: pa.Table) -> pa.Table:
    known = answers.filter(pc.is_valid(answers["rouge_l"]))
    return _table(
        measure=pa.array([ROUGE_L] * known.num_rows, pa.string()),
        id=known["id"],
        value=known["rouge_l"],
        weight=pa.array([1.0] * known.num_rows, pa.float64()),
        higher_is_better=pa.array([True] * known.num_rows, pa.bool_()),
    )


def _benchmarks(documents: pa.Table) -> pa.Table:
    return _table(
        measure=pc.binary_join_element_wise(documents["task"], documents["metric"], " "),
        id=pc.cast(documents["document"], pa.string()),
        value=documents["value"],
        weight=documents["weight"],
        higher_is_better=documents["higher_is_better"],
    )


def _table(**columns: pa.Array | pa.ChunkedArray) -> pa.Table:
    return pa.table(columns).cast(tables.MEASURES)
