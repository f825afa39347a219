r"""Stage `dedupe`: removes duplicates and splits off the holdout; lists each removed record with the one kept instead.

    same_record     the same content id
    same_response   the same response to another prompt (dedupe.same_response)
    near_holdout    Jaccard similarity of the sets of word n-grams with a holdout record >= dedupe.threshold
    near            the same with any other kept record (dedupe.near)
    like_target     any of these with an example of what the model is for (a source with target: true)
    contaminated    a run of words shared with the holdout or a benchmark (contamination.exclude)

A hash of a record's content id decides whether it falls to the holdout or to the pool. Records that fall to the
holdout are compared with each other first, then those that fall to the pool are compared with all records kept so far.
So a pool record never displaces a holdout record, and new pool records never change the holdout. A record is removed
only for a kept record that it was compared with, so there are no chains of loose matches. (The kept record may still be
over a cap, which duplicates.parquet then shows; such a record is not trained on either.) What is like a target is
removed from what falls to the pool, not from the holdout.

Every pair at the threshold or above it is found, and its similarity is exact (components/overlap/similarity_join.py).

With a noise.share, that share of the pool is then spoiled (components/noise/).

    python -m components.dedupe --records data/raw.parquet --pool data/pool.parquet --holdout data/holdout.parquet ...
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from components.core.errors import UserError
from components.core.files import write_json
from components.core.params import load_settings
from components.core.paths import PARAMS
from components.core.progress import progress
from components.core.settings.dedupe import DedupeSettings
from components.core.stage import stage
from components.data import tables
from components.data.records import Record, open_records, read_records, take_records, write_records
from components.data.tables import Removal
from components.noise.plant import plant
from components.overlap.ngrams import record_text
from components.provenance.statements import statement_of

if TYPE_CHECKING:
    from components.overlap.shingles import ShingleSets
    from components.overlap.similarity_join import Match


@dataclass(frozen=True, slots=True)
class DedupeSummary:
    """What metrics/dedupe.json holds: numbers of records, those of the removed ones by kind."""

    records: int
    pool: int
    holdout: int
    removed: dict[str, int]


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """Pool and holdout in the order of the sources, and all other records."""

    pool: Sequence[Record]
    holdout: Sequence[Record]
    removed: list[Removal]

    def summary(self) -> DedupeSummary:
        pool, holdout, removed = len(self.pool), len(self.holdout), len(self.removed)
        kinds = dict(sorted(Counter(row.kind for row in self.removed).items()))
        return DedupeSummary(pool + holdout + removed, pool, holdout, kinds)


@dataclass(frozen=True, slots=True)
class Compared:
    """What records are compared by; index i is the i-th record."""

    ids: list[str]
    sources: list[str]
    responses: list[bytes]
    """SHA-256 of the response, without white space at its ends."""
    shingles: ShingleSets


def deduplicate(
    records: Sequence[Record],
    settings: DedupeSettings,
    weights: dict[str, float],
    targets: Sequence[Record] = (),
) -> Deduplicated:
    """Split the records into pool, holdout and removed; every record is in exactly one of them.

    `weights`: relative share of the pool of each source, used where there are more than `max_records`. `targets`: the
    pool holds nothing like them. Raises UserError when too large a share is removed, and when pool or holdout are
    empty.
    """
    total = len(records)
    compared = read_compared(chain(records, targets), total + len(targets), settings.ngram)
    ids = compared.ids[:total]
    in_holdout = [_fraction(id_, "holdout") < settings.holdout_share for id_ in ids]
    kept = _KeptRecords(compared, total, settings)
    for_holdout = [index for index, held in enumerate(in_holdout) if held and kept.add(index)]
    holdout = _sample(for_holdout, ids, settings.max_holdout)
    for_pool = [index for index, held in enumerate(in_holdout) if not held]
    for_pool = _remove_like_targets(for_pool, compared, total, settings, kept.removed)
    like_holdout = near_across(compared.shingles, for_pool, sorted(holdout), settings.threshold)
    with progress(total=len(for_pool), unit="records", what="dedupe: duplicates in the pool") as advance:
        left = []
        for index in for_pool:
            if kept.add(index, like_holdout.get(index)):
                left.append(index)
            advance(1)
    _check_removed_share(kept.removed, total, settings.max_removed_share)
    pool = _sample_by_source(left, compared, settings.max_records, weights)
    _check_not_empty(pool, holdout, total, settings.holdout_share)
    for index in sorted({*for_holdout, *left} - holdout - pool):
        kept.remove(index, "over_cap", None)
    return Deduplicated(take_records(records, sorted(pool)), take_records(records, sorted(holdout)), kept.removed)


def read_compared(records: Iterable[Record], total: int, ngram: int) -> Compared:
    """What the `total` records are compared by, with word n-grams of that length."""
    from components.overlap.shingles import ShingleCollector

    ids: list[str] = []
    sources: list[str] = []
    responses: list[bytes] = []
    shingles = ShingleCollector(ngram)
    with progress(total=total, unit="records", what="dedupe: words") as advance:
        for record in records:
            ids.append(record.id)
            sources.append(sys.intern(record.source))  # one string for all records of a source
            response = record.response.strip().encode("utf-8", "surrogatepass")
            responses.append(hashlib.sha256(response).digest())
            shingles.add(record_text(record))
            advance(1)
    return Compared(ids, sources, responses, shingles.finish())


def _remove_like_targets(
    for_pool: Sequence[int], compared: Compared, first: int, settings: DedupeSettings, removed: list[Removal]
) -> list[int]:
    """The indices of records that are no duplicate of a target; the others are added to `removed`.

    The targets are what is compared from index `first` on.
    """
    targets = range(first, len(compared.ids))
    near = near_across(compared.shingles, for_pool, targets, settings.threshold)
    by_id = {compared.ids[target]: target for target in targets}
    by_response = {compared.responses[target]: target for target in reversed(targets)}
    left = []
    for index in for_pool:
        match = near.get(index)
        same = by_id.get(compared.ids[index])
        if same is None and settings.same_response:
            same = by_response.get(compared.responses[index])
        if same is None and match is None:
            left.append(index)
            continue
        target, similarity = (match.index, match.similarity) if same is None and match else (same, 1.0)
        assert target is not None
        removed.append(
            Removal(compared.ids[index], compared.sources[index], compared.ids[target], "like_target", similarity)
        )
    return left


class _KeptRecords:
    """An index of the records kept so far, by id, response and n-grams; and the records that were removed."""

    def __init__(self, compared: Compared, total: int, settings: DedupeSettings) -> None:
        from components.overlap.similarity_join import SimilarityIndex

        self.removed: list[Removal] = []
        self._compared, self._settings = compared, settings
        self._by_id: dict[str, int] = {}
        self._by_response: dict[bytes, int] = {}
        self._near = SimilarityIndex(compared.shingles, settings.threshold, range(total)) if settings.near else None

    def add(self, index: int, like_holdout: Match | None = None) -> bool:
        """Keep the record, or remove it as a duplicate of a kept one. Returns whether it is kept."""
        id_, response = self._compared.ids[index], self._compared.responses[index]
        if (same := self._by_id.get(id_)) is not None:
            self.remove(index, "same_record", same)
        elif self._settings.same_response and (same := self._by_response.get(response)) is not None:
            self.remove(index, "same_response", same)
        elif like_holdout:
            self.remove(index, "near_holdout", like_holdout.index, like_holdout.similarity)
        elif self._near and (near := self._near.nearest(index)):
            self.remove(index, "near", near.index, near.similarity)
        else:
            self._by_id[id_] = self._by_response[response] = index
            if self._near:
                self._near.add(index)
            return True
        return False

    def remove(self, index: int, kind: str, kept: int | None, similarity: float = 1.0) -> None:
        """List the record as removed; `kept` is the record that is kept instead, None for a record over a cap."""
        ids, source = self._compared.ids, self._compared.sources[index]
        kept_id, alike = (None, None) if kept is None else (ids[kept], similarity)
        self.removed.append(Removal(ids[index], source, kept_id, kind, alike))


def _check_removed_share(removed: Sequence[Removal], total: int, limit: float) -> None:
    """Raises UserError when more than the share `limit` of the `total` records was removed."""
    if len(removed) <= limit * total:
        return
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(row.kind for row in removed).most_common())
    raise UserError(
        f"{PARAMS}: dedupe.max_removed_share: {len(removed):,} of {total:,} records are duplicates ({kinds}), "
        f"more than {limit}; look at the sources, or raise dedupe.threshold"
    )


def _check_not_empty(pool: set[int], holdout: set[int], total: int, holdout_share: float) -> None:
    """Raises UserError when none of the `total` records is in the pool, or none in the holdout."""
    key = f"{PARAMS}: dedupe.holdout_share"
    if not pool:
        raise UserError(f"{key}: none of {total:,} records is left for the pool; add data, or lower the share")
    if not holdout:
        raise UserError(
            f"{key}: none of {total:,} records falls into a share of {holdout_share}; raise it, or add data"
        )


def _fraction(id_: str, purpose: str) -> float:
    """A number in [0, 1) that depends only on the record's id and the purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{id_}".encode()).digest()[:8]) / 2**64


def near_across(
    shingles: ShingleSets, pool: Sequence[int], holdout: Sequence[int], threshold: float
) -> dict[int, Match]:
    """For each index of `pool` the most similar index of `holdout`, where their similarity reaches the threshold.

    Of equally similar records of the holdout the first one counts.
    """
    if not holdout:
        return {}
    from components.overlap.similarity_join import SimilarityIndex

    index = SimilarityIndex(shingles, threshold, holdout)
    for held in holdout:
        index.add(held)
    matches = ((row, index.nearest(row)) for row in pool)
    return {row: match for row, match in matches if match}


def _sample(indices: Sequence[int], ids: Sequence[str], limit: int | None) -> set[int]:
    """At most `limit` of the indices, those of the smallest hashes: a sample that new data hardly change."""
    return set(sorted(indices, key=lambda index: _fraction(ids[index], "cap"))[:limit])


def _sample_by_source(
    indices: Sequence[int], compared: Compared, limit: int | None, weights: dict[str, float]
) -> set[int]:
    """At most `limit` of the indices, divided among the sources by their weights."""
    if limit is None or len(indices) <= limit:
        return set(indices)
    by_source: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        by_source[compared.sources[index]].append(index)
    quotas = share_out(limit, {name: len(available) for name, available in by_source.items()}, weights)
    return {index for name, available in by_source.items() for index in _sample(available, compared.ids, quotas[name])}


def share_out(total: int, available: dict[str, int], weights: dict[str, float]) -> dict[str, int]:
    """The number of records that each source contributes to `total`: in proportion to its weight, as far as it can.

    What a source cannot contribute is divided among the others. Shares are rounded down; the records that are then
    missing go to the sources with the largest remainders, on a tie to the first source.
    """
    quotas: dict[str, int] = {}
    remaining = dict(available)
    while remaining:
        unit = (total - sum(quotas.values())) / sum(weights[name] for name in remaining)
        exhausted = {name: count for name, count in remaining.items() if count <= weights[name] * unit}
        if not exhausted:
            return quotas | _round_to_total(
                {name: weights[name] * unit for name in remaining}, total - sum(quotas.values())
            )
        quotas |= exhausted
        remaining = {name: count for name, count in remaining.items() if name not in exhausted}
    return quotas


def _round_to_total(shares: dict[str, float], total: int) -> dict[str, int]:
    """The shares as whole numbers that add up to `total`, by the largest remainders."""
    quotas = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: quotas[name] - shares[name])
    for name in by_remainder[: total - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def exclude_contaminated(result: Deduplicated, texts: pa.Table, ngram: int) -> Deduplicated:
    """Without the pool records that share an n-gram with the holdout or with `texts`, tables.BENCHMARK_TEXTS.

    Raises UserError when no record is left.
    """
    from components.overlap.contamination import References, split_contaminated

    clean, removed = split_contaminated(result.pool, References(result.holdout, texts, ngram))
    if not clean:
        raise UserError(
            f"{PARAMS}: contamination.exclude: every record of the pool shares {ngram} words with the holdout or a "
            "benchmark; raise contamination.ngram, or do not exclude"
        )
    return Deduplicated(take_records(result.pool, clean), result.holdout, [*result.removed, *removed])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.dedupe", description="Remove duplicates, then split off the holdout."
    )
    for name in ("records", "targets", "pool", "holdout", "duplicates", "noise", "candidates", "texts", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    with stage("dedupe") as running, statement_of(running.name):
        settings = load_settings()
        records = open_records(options.records)
        weights = {name: source.weight for name, source in settings.ingest.sources.items()}
        result = deduplicate(records, settings.dedupe, weights, read_records(options.targets))
        if settings.contamination.exclude:
            texts = tables.read(options.texts, tables.BENCHMARK_TEXTS)
            result = exclude_contaminated(result, texts, settings.contamination.ngram)
        pool, planted = plant(result.pool, settings.noise)
        write_records(options.pool, pool)
        write_records(options.holdout, result.holdout)
        tables.write_rows(options.duplicates, result.removed, tables.DUPLICATES)
        noise = pa.Table.from_pylist(list(map(asdict, planted)), tables.NOISE)
        tables.write(options.noise, noise, tables.NOISE)
        candidates = pa.table({"id": [record.id for record in pool]}, schema=tables.CANDIDATES)
        tables.write(options.candidates, candidates, tables.CANDIDATES)
        summary = result.summary()
        write_json(options.metrics, asdict(summary))
        removed = ", ".join(f"{count:,} {kind}" for kind, count in summary.removed.items()) or "nothing removed"
        if planted:
            print(f"dedupe: {len(planted):,} records of the pool are spoiled (noise.share {settings.noise.share})")
        print(f"dedupe: {summary.pool:,} in the pool, {summary.holdout:,} in the holdout; {removed}")


if __name__ == "__main__":
    main()
