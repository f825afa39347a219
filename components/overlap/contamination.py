"""Which training records share an n-gram with the holdout or with a benchmark's documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from components.data.records import Record
from components.data.tables import Removal
from components.overlap.ngrams import NgramIndex, Overlap, record_text

HOLDOUT = "holdout"


class References:
    """The texts that no training record should share words with: the holdout, and benchmarks task by task."""

    def __init__(self, holdout: Sequence[Record], texts: pa.Table, n: int) -> None:
        self._ids = {HOLDOUT: [record.id for record in holdout]}
        collections = {HOLDOUT: [record_text(record) for record in holdout]}
        for row in texts.to_pylist():  # tables.BENCHMARK_TEXTS
            self._ids.setdefault(row["task"], []).append(str(row["document"]))
            collections.setdefault(row["task"], []).append(row["text"])
        self._index = NgramIndex(collections, n)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of texts, for the holdout and each task."""
        return {name: len(ids) for name, ids in self._ids.items()}

    def too_short(self, name: str) -> int:
        """Number of the texts that have fewer than n words."""
        return self._index.too_short(name)

    def overlaps(self, record: Record) -> dict[str, Overlap]:
        """By `holdout` or task, what the record shares with it."""
        return self._index.overlaps(record_text(record))

    def id_of(self, name: str, overlap: Overlap) -> str:
        """The id of the holdout's record, or the number of the task's document, that an overlap names."""
        return self._ids[name][overlap.reference]


def split_contaminated(records: Iterable[Record], references: References) -> tuple[list[int], list[Removal]]:
    """The rows of the records that share nothing; the others as rows of tables.DUPLICATES, of kind `contaminated`.

    Such a row names the record of the holdout as the one that is kept, or a task's document as TASK/NUMBER.
    """
    clean: list[int] = []
    removed: list[Removal] = []
    for row, record in enumerate(records):
        overlaps = references.overlaps(record)
        if not overlaps:
            clean.append(row)
            continue
        name, overlap = next(iter(overlaps.items()))
        kept = references.id_of(name, overlap)
        removed.append(
            Removal(record.id, record.source, kept if name == HOLDOUT else f"{name}/{kept}", "contaminated", None)
        )
    return clean, removed
