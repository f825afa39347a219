"""What became of the records that were read: rejected, removed as duplicates, held out, in the pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from components.core.files import read_json
from components.pages import charts
from components.pages.parts import Column, Figure, Figures, Part, Table, Text
from components.pages.run.workspace import METRICS, REJECTED, Run, read_columns

KINDS = {  # of data/duplicates.parquet, in words
    "same_record": "same record again",
    "same_response": "same response",
    "near": "near copy",
    "near_holdout": "near copy of holdout",
    "like_target": "like an example of the target",
    "over_cap": "over a cap",
}


def removal(run: Run) -> Iterator[Part]:
    """Counts from the sources to the pool."""
    del run
    ingested, deduplicated = read_json(METRICS / "ingest.json"), read_json(METRICS / "dedupe.json")
    rejected = _rejected()
    removed: dict[str, int] = deduplicated.get("removed", {})
    counts = {f"rejected: {reason.replace('_', ' ')}": count for reason, count in rejected.items()}
    counts |= {KINDS.get(kind, kind.replace("_", " ")): count for kind, count in sorted(removed.items())}
    left_out = sum(counts.values())
    yield Text(
        f"{ingested['records'] + sum(rejected.values()):,} records were read; {left_out:,} were left out, "
        f"{deduplicated['holdout']:,} are the holdout, and {deduplicated['pool']:,} the pool that can be chosen from."
    )
    if counts:
        yield Figures(
            [Figure("Records that were left out", "records, by reason", charts.bars(counts, "records"))],
            data="data/rejected.parquet, data/duplicates.parquet",
        )
    sources = ingested.get("sources", {})
    if sources:
        titles = ("source", "read", "rejected", "over its cap", "kept")
        cells = [
            [name, *(f"{row[field]:,}" for field in ("read", "rejected", "over_cap", "kept"))]
            for name, row in sources.items()
        ]
        yield Table([Column(title, number=title != "source") for title in titles], cells, caption="Before duplicates.")


def _rejected() -> dict[str, int]:
    """Reason -> number of rejected records, the most frequent first."""
    reasons = Counter(reason for (reason,) in read_columns(REJECTED, ["reason"]))
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
