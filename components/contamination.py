"""Stage `contamination`: records that share a run of words with the holdout or with the documents of a benchmark.

Counted in the pool, in what each iteration picked, and among the records that `dedupe` removed because they are like a
record of the holdout: near-duplicate removal compares whole texts, so each of the two finds what the other does not.
The table names every such record, and where the first shared n-gram of contamination.ngram words is in both texts.

    python -m components.contamination --records data/raw.parquet --pool data/pool.parquet
        --holdout data/holdout.parquet --duplicates data/duplicates.parquet --texts data/benchmarks/texts.parquet
        --iterations data/iterations --overlaps data/contamination.parquet --metrics metrics/contamination.json
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.core.files import write_json
from components.core.params import load_settings
from components.core.stage import stage
from components.data import tables
from components.data.records import Record, iterate_records, read_records
from components.overlap.contamination import HOLDOUT, References
from components.provenance.statements import statement_of

POOL = "pool"
REMOVED = ("near_holdout", "contaminated")  # kinds of removed records that are compared, too


@dataclass(frozen=True, slots=True)
class Share:
    """Some records, and how many of them share an n-gram."""

    records: int
    holdout: int
    """With the holdout."""
    benchmarks: int
    """With a document of any benchmark."""


@dataclass(frozen=True, slots=True)
class Against:
    """A collection of texts, and the records of the pool that share an n-gram with it."""

    texts: int
    too_short: int
    """Texts with fewer words than an n-gram has; what is like them is for near-duplicate removal alone to find."""
    pool: int


@dataclass(frozen=True, slots=True)
class Contamination:
    """What metrics/contamination.json holds."""

    ngram: int
    pool: Share
    removed: Mapping[str, Share]
    """By kind: the records that are not in the pool, because `dedupe` found them like the holdout or contaminated."""
    iterations: Mapping[str, Share]
    """The picks of each iteration."""
    against: Mapping[str, Against]


def find_overlaps(places: Mapping[str, Iterable[Record]], references: References) -> pa.Table:
    """tables.OVERLAPS of records; `places`: pool, or why a record was removed -> records."""
    rows = [
        {
            "id": record.id,
            "source": record.source,
            "place": place,
            "against": name,
            "against_id": references.id_of(name, overlap),
            "ngrams": overlap.ngrams,
            "word": overlap.word,
            "against_word": overlap.reference_word,
        }
        for place, records in places.items()
        for record in records
        for name, overlap in references.overlaps(record).items()
    ]
    return pa.Table.from_pylist(rows, schema=tables.OVERLAPS)


def summarize(
    overlaps: pa.Table,
    references: References,
    ngram: int,
    places: Mapping[str, Collection[str]],
    picks: Mapping[str, Collection[str]],
) -> Contamination:
    """The counts; `places` and `picks`: ids of the records by place, and of those that each iteration picked."""
    rows = overlaps.to_pylist()
    in_pool = [row for row in rows if row["place"] == POOL]
    return Contamination(
        ngram=ngram,
        pool=_share(places[POOL], in_pool),
        removed={kind: _share(places[kind], [row for row in rows if row["place"] == kind]) for kind in REMOVED},
        iterations={key: _share(ids, in_pool) for key, ids in picks.items()},
        against={
            name: Against(
                size, references.too_short(name), len({row["id"] for row in in_pool if row["against"] == name})
            )
            for name, size in references.sizes.items()
        },
    )


def _share(ids: Collection[str], rows: Iterable[Mapping[str, Any]]) -> Share:
    """The counts of records; `rows`: tables.OVERLAPS of these and other records."""
    sharing: dict[bool, set[str]] = {True: set(), False: set()}  # with the holdout, with a benchmark
    for row in rows:
        sharing[row["against"] == HOLDOUT].add(row["id"])
    return Share(len(ids), len(sharing[True].intersection(ids)), len(sharing[False].intersection(ids)))


def removed_records(records: Path, duplicates: pa.Table) -> dict[str, list[Record]]:
    """By kind of REMOVED, the records of the sources that `dedupe` removed for it, each id once."""
    kinds = {row["id"]: row["kind"] for row in duplicates.to_pylist() if row["kind"] in REMOVED}
    found: dict[str, list[Record]] = {kind: [] for kind in REMOVED}
    for record in iterate_records(records):
        if kind := kinds.pop(record.id, None):
            found[kind].append(record)
    return found


def describe(found: Contamination) -> Iterator[str]:
    """Lines for people."""
    with_benchmarks = f", {found.pool.benchmarks:,} with a benchmark" if len(found.against) > 1 else ""
    yield (
        f"{found.pool.holdout:,} of {found.pool.records:,} records of the pool share {found.ngram} words "
        f"with the holdout{with_benchmarks}"
    )
    if (near := found.removed["near_holdout"]).records:
        yield f"near-duplicate removal took out {near.records:,} like the holdout; {near.holdout:,} share as many words"
    if excluded := found.removed["contaminated"].records:
        yield f"{excluded:,} were excluded for it"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.contamination", description="Find records that share words with test texts."
    )
    for name in ("records", "pool", "holdout", "duplicates", "texts", "iterations", "overlaps", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    with stage("contamination") as running, statement_of(running.name):
        settings = load_settings()
        ngram = settings.contamination.ngram
        texts = tables.read(options.texts, tables.BENCHMARK_TEXTS)
        references = References(read_records(options.holdout), texts, ngram)
        removed = removed_records(options.records, tables.read(options.duplicates, tables.DUPLICATES))
        overlaps = find_overlaps({POOL: iterate_records(options.pool), **removed}, references)
        places = {POOL: tables.read_ids(options.pool)}
        places |= {kind: [record.id for record in records] for kind, records in removed.items()}
        picks = {key: tables.read_ids(options.iterations / key / "subset.parquet") for key in settings.iterations}
        found = summarize(overlaps, references, ngram, places, picks)
        tables.write(options.overlaps, overlaps, tables.OVERLAPS)
        write_json(options.metrics, asdict(found))
        for line in describe(found):
            print(f"{running.name}: {line}")


if __name__ == "__main__":
    main()
