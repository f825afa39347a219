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

MinHash finds candidates for `near`: a signature of `permutations` minima is cut into b bands of r rows, and two
records are candidates when they agree in a whole band, which happens with probability 1 - (1 - s^r)^b at similarity s
(Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4). r is the largest value that misses at most 1 %
of the pairs at the threshold. The similarity of every candidate pair is then computed exactly. `near_holdout` and
`like_target` do not depend on MinHash: a product of sparse matrices gives the exact similarity of every pair of pool
and holdout records, so that no test record is trained on.

With a noise.share, that share of the pool is then spoiled (components/noise/).

    python -m components.dedupe --records data/raw.parquet --pool data/pool.parquet --holdout data/holdout.parquet ...
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.core.errors import UserError
from components.core.files import write_json
from components.core.params import load_settings
from components.core.paths import PARAMS
from components.core.settings.dedupe import DedupeSettings
from components.core.stage import stage
from components.data import tables
from components.data.records import Record, read_records, write_records
from components.data.tables import Removal
from components.noise.plant import plant
from components.provenance.statements import statement_of

MISSED = 0.01  # share of the pairs at the threshold that MinHash may miss
SEED = 1  # of MinHash's hash functions
BLOCK = 512  # pool records compared with the holdout at a time: 11 MB of similarities for a holdout of 2,600
WORDS = re.compile(r"\w+")


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

    pool: list[Record]
    holdout: list[Record]
    removed: list[Removal]

    def summary(self) -> DedupeSummary:
        pool, holdout, removed = len(self.pool), len(self.holdout), len(self.removed)
        kinds = dict(sorted(Counter(row.kind for row in self.removed).items()))
        return DedupeSummary(pool + holdout + removed, pool, holdout, kinds)


@dataclass(frozen=True, slots=True)
class Match:
    """A record that another record resembles: its index, and their Jaccard similarity."""

    index: int
    similarity: float


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
    in_holdout = [_fraction(record.id, "holdout") < settings.holdout_share for record in records]
    shingles = [shingle(record, settings.ngram) for record in records]
    kept = _KeptRecords(records, shingles, settings)
    for_holdout = [index for index, held in enumerate(in_holdout) if held and kept.add(index)]
    holdout = _sample(for_holdout, records, settings.max_holdout)
    for_pool = [index for index, held in enumerate(in_holdout) if not held]
    for_pool = _remove_like_targets(for_pool, records, shingles, targets, settings, kept.removed)
    like_holdout = near_across(shingles, for_pool, sorted(holdout), settings.threshold)
    for_pool = [index for index in for_pool if kept.add(index, like_holdout.get(index))]
    _check_removed_share(kept.removed, len(records), settings.max_removed_share)
    pool = _sample_by_source(for_pool, records, settings.max_records, weights)
    _check_not_empty(pool, holdout, len(records), settings.holdout_share)
    for index in sorted({*for_holdout, *for_pool} - holdout - pool):
        kept.remove(index, "over_cap", None)
    return Deduplicated(
        [records[index] for index in sorted(pool)], [records[index] for index in sorted(holdout)], kept.removed
    )


def _remove_like_targets(
    for_pool: Sequence[int],
    records: Sequence[Record],
    shingles: Sequence[frozenset[str]],
    targets: Sequence[Record],
    settings: DedupeSettings,
    removed: list[Removal],
) -> list[int]:
    """The indices of records that are no duplicate of a target; the others are added to `removed`."""
    if not targets:
        return list(for_pool)
    both = [*shingles, *(shingle(target, settings.ngram) for target in targets)]
    near = near_across(both, for_pool, range(len(records), len(both)), settings.threshold)
    by_id = {target.id: target.id for target in targets}
    by_response = {target.response.strip(): target.id for target in reversed(targets)}
    left = []
    for index in for_pool:
        record, match = records[index], near.get(index)
        same = by_id.get(record.id)
        if same is None and settings.same_response:
            same = by_response.get(record.response.strip())
        if same is not None:
            removed.append(Removal(record.id, record.source, same, "like_target", 1.0))
        elif match:
            target = targets[match.index - len(records)]
            removed.append(Removal(record.id, record.source, target.id, "like_target", match.similarity))
        else:
            left.append(index)
    return left


class _KeptRecords:
    """An index of the records kept so far, by id, response and MinHash bands; and the records that were removed."""

    def __init__(self, records: Sequence[Record], shingles: Sequence[frozenset[str]], settings: DedupeSettings) -> None:
        self.removed: list[Removal] = []
        self._records, self._shingles, self._settings = records, shingles, settings
        self._by_id: dict[str, int] = {}
        self._by_response: dict[str, int] = {}
        self._bands = _signature_bands(shingles, settings) if settings.near and records else []
        self._buckets: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in self._bands]

    def add(self, index: int, like_holdout: Match | None = None) -> bool:
        """Keep the record, or remove it as a duplicate of a kept one. Returns whether it is kept."""
        record = self._records[index]
        response = record.response.strip()
        if record.id in self._by_id:
            self.remove(index, "same_record", Match(self._by_id[record.id], 1.0))
        elif self._settings.same_response and response in self._by_response:
            self.remove(index, "same_response", Match(self._by_response[response], 1.0))
        elif like_holdout:
            self.remove(index, "near_holdout", like_holdout)
        elif near := self._nearest(index):
            self.remove(index, "near", near)
        else:
            self._by_id[record.id] = self._by_response[response] = index
            for bucket, band in zip(self._buckets, self._bands, strict=True):
                bucket[band[index]].append(index)
            return True
        return False

    def remove(self, index: int, kind: str, kept: Match | None) -> None:
        """List the record as removed; `kept` is the record that is kept instead, None for a record over a cap."""
        record = self._records[index]
        kept_id, similarity = (self._records[kept.index].id, kept.similarity) if kept else (None, None)
        self.removed.append(Removal(record.id, record.source, kept_id, kind, similarity))

    def _nearest(self, index: int) -> Match | None:
        """The most similar kept record, at the threshold or above it; the earlier of two equally similar ones."""
        candidates = {
            candidate
            for bucket, band in zip(self._buckets, self._bands, strict=True)
            for candidate in bucket.get(band[index], ())
        }
        similarities = [
            (jaccard(self._shingles[index], self._shingles[candidate]), -candidate) for candidate in candidates
        ]
        similarity, negated = max(similarities, default=(0.0, 0))
        return Match(-negated, similarity) if similarity >= self._settings.threshold else None


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


def shingle(record: Record, n: int) -> frozenset[str]:
    """The word n-grams of prompt and response, in lower case.

    A text of fewer than n words is a single shingle of all its words; a text without any word is itself one.
    """
    text = f"{record.prompt}\n{record.response}".lower()
    words = WORDS.findall(text)
    if not words:
        return frozenset({text})  # with an empty shingle, all texts without words would be alike
    return frozenset(" ".join(words[start : start + n]) for start in range(max(1, len(words) - n + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard similarity: the size of the intersection by that of the union. The sets must not be empty."""
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def rows_per_band(threshold: float, permutations: int) -> int:
    """The largest r with (1 - threshold^r)^(permutations // r) <= MISSED, which gives the fewest false candidates."""
    return max(
        (r for r in range(1, permutations + 1) if (1 - threshold**r) ** (permutations // r) <= MISSED), default=1
    )


def _signature_bands(shingles: Sequence[frozenset[str]], settings: DedupeSettings) -> list[list[bytes]]:
    """For each band, the bytes of every record's signature in that band; records with equal bytes are candidates."""
    import numpy as np
    from rensa import RMinHash

    # a fixed seed, so that the same texts have the same signature in every process
    digests = RMinHash.digests_from_token_sets([sorted(texts) for texts in shingles], settings.permutations, SEED)
    signatures = np.array(digests, dtype=np.uint32)
    rows = rows_per_band(settings.threshold, settings.permutations)
    return [
        [row.tobytes() for row in signatures[:, start : start + rows]]
        for start in range(0, settings.permutations - rows + 1, rows)
    ]


def near_across(
    shingles: Sequence[frozenset[str]], pool: Sequence[int], holdout: Sequence[int], threshold: float
) -> dict[int, Match]:
    """For each index of `pool` the most similar index of `holdout`, where their similarity reaches the threshold.

    Of equally similar records of the holdout the first one counts.
    """
    if not holdout:
        return {}
    import numpy as np

    vocabulary: dict[str, int] = {}
    for index in holdout:
        for text in shingles[index]:
            vocabulary.setdefault(text, len(vocabulary))
    of_holdout = _incidence_matrix([shingles[index] for index in holdout], vocabulary).T.tocsr()
    holdout_sizes = np.array([len(shingles[index]) for index in holdout])
    matches: dict[int, Match] = {}
    for start in range(0, len(pool), BLOCK):
        block = pool[start : start + BLOCK]
        sets = [shingles[index] for index in block]
        common = (_incidence_matrix(sets, vocabulary) @ of_holdout).toarray()
        sizes = np.array([len(texts) for texts in sets])
        similarities = common / (sizes[:, None] + holdout_sizes[None, :] - common)
        best = similarities.argmax(axis=1)  # the first of equals
        for row in map(int, np.flatnonzero(similarities[np.arange(len(block)), best] >= threshold)):
            matches[block[row]] = Match(holdout[best[row]], float(similarities[row, best[row]]))
    return matches


def _incidence_matrix(sets: Sequence[frozenset[str]], vocabulary: dict[str, int]) -> Any:
    """A scipy CSR matrix of shape (sets, vocabulary), with a 1 for every shingle in a set."""
    import numpy as np
    from scipy.sparse import csr_matrix

    rows = [[vocabulary[text] for text in texts if text in vocabulary] for texts in sets]
    bounds = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter((column for row in rows for column in row), dtype=np.int32, count=int(bounds[-1]))
    return csr_matrix((np.ones(len(columns), np.int32), columns, bounds), shape=(len(sets), len(vocabulary)))


def _sample(indices: Sequence[int], records: Sequence[Record], limit: int | None) -> set[int]:
    """At most `limit` of the indices, those of the smallest hashes: a sample that new data hardly change."""
    return set(sorted(indices, key=lambda index: _fraction(records[index].id, "cap"))[:limit])


def _sample_by_source(
    indices: Sequence[int], records: Sequence[Record], limit: int | None, weights: dict[str, float]
) -> set[int]:
    """At most `limit` of the indices, divided among the sources by their weights."""
    if limit is None or len(indices) <= limit:
        return set(indices)
    by_source: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        by_source[records[index].source].append(index)
    quotas = share_out(limit, {name: len(available) for name, available in by_source.items()}, weights)
    return {index for name, available in by_source.items() for index in _sample(available, records, quotas[name])}


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

    pool, removed = split_contaminated(result.pool, References(result.holdout, texts, ngram))
    if not pool:
        raise UserError(
            f"{PARAMS}: contamination.exclude: every record of the pool shares {ngram} words with the holdout or a "
            "benchmark; raise contamination.ngram, or do not exclude"
        )
    return Deduplicated(pool, result.holdout, [*result.removed, *removed])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.dedupe", description="Remove duplicates, then split off the holdout."
    )
    for name in ("records", "targets", "pool", "holdout", "duplicates", "noise", "candidates", "texts", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    with stage("dedupe") as running, statement_of(running.name):
        settings = load_settings()
        records = read_records(options.records)
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
