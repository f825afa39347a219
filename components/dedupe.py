r"""Remove duplicates, then split off the holdout; say of every record that is left out in favour of what.

Three kinds, one after the other:

    same_record     the same content id
    same_response   the same response to another prompt (dedupe.same_response)
    near            Jaccard similarity of the sets of word n-grams >= dedupe.threshold

MinHash finds candidates for the last: a signature of `permutations` minima is cut into b bands of r rows, and two
records are candidates when a whole band agrees, which happens with probability 1 - (1 - s^r)^b for records of
similarity s (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4). r is the largest for which a pair at the
threshold is missed with at most 1 %. The similarity of every candidate pair is then computed exactly.

A record goes only in favour of one that stays and that it was compared with: no chains of loose matches. Records of
the holdout go first, then the order of the sources: so the holdout does not change when data are added, and it is
the pool that yields. The holdout is a share of the records by a hash of their content id. What MinHash missed between
holdout and pool is found exactly, by a product of sparse matrices: nothing that is tested is trained on.

    python -m components.dedupe --records data/raw.parquet --pool data/pool.parquet --holdout data/holdout.parquet ...
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from components import tables
from components.errors import UserError
from components.records import Record, read_records, write_records
from components.settings import PARAMS, DedupeSettings, load_settings
from components.stage import stage

MISSED = 0.01  # share of the pairs at the threshold that MinHash may miss
SEED = 1  # of the hash functions
WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Deduplicated:
    """Pool and holdout in the order of the sources, and a row of tables.DUPLICATES for every other record."""

    pool: list[Record]
    holdout: list[Record]
    removed: list[dict[str, Any]]


def deduplicate(records: Sequence[Record], settings: DedupeSettings, weights: dict[str, float]) -> Deduplicated:
    """Split into pool, holdout and removed; every record is in exactly one of them.

    `weights`: source -> relative share of the pool where `max_records` leaves records out. Raises UserError when too
    much is removed, and when pool or holdout are empty.
    """
    is_holdout = [_fraction(record.id, "holdout") < settings.holdout_share for record in records]
    order = sorted(range(len(records)), key=lambda index: not is_holdout[index])  # stable: holdout first
    removed: list[dict[str, Any]] = []

    def remove(index: int, kept: int | None, kind: str, similarity: float | None) -> None:
        kept_id = records[kept].id if kept is not None else None
        row = {"id": records[index].id, "source": records[index].source, "kept_id": kept_id}
        removed.append({**row, "kind": kind, "similarity": similarity})

    order = _without_equals(order, [record.id for record in records], "same_record", remove)
    if settings.same_response:
        order = _without_equals(order, [record.response.strip() for record in records], "same_response", remove)
    if settings.near and order:
        shingles = [_shingles(records[index], settings.ngram) for index in order]
        kept: list[int] = []
        for position, favoured, similarity in _near_duplicates(shingles, settings):
            if favoured is None:
                kept.append(position)
            else:
                remove(order[position], order[favoured], "near", similarity)
        held = [position for position in kept if is_holdout[order[position]]]
        rest = [position for position in kept if not is_holdout[order[position]]]
        for position, favoured, similarity in _near_across(shingles, held, rest, settings.threshold):
            remove(order[position], order[favoured], "near_holdout", similarity)
            kept.remove(position)
        order = [order[position] for position in kept]
    if records and len(removed) > settings.max_removed_share * len(records):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(row["kind"] for row in removed).most_common())
        raise UserError(
            f"{len(removed):,} of {len(records):,} records are duplicates ({kinds}), more than "
            f"dedupe.max_removed_share {settings.max_removed_share}; look at the sources, or raise dedupe.threshold"
        )
    holdout = [index for index in order if is_holdout[index]]
    pool = [index for index in order if not is_holdout[index]]
    sources = [record.source for record in records]
    in_holdout = _smallest(holdout, records, settings.max_holdout)
    in_pool = _shared(pool, records, sources, settings.max_records, weights)
    for index in sorted({*order} - in_holdout - in_pool):
        remove(index, None, "over_cap", None)
    if not in_pool:
        raise UserError(
            f"no record is left for the pool of {len(records):,} read; add data or lower dedupe.holdout_share"
        )
    if not in_holdout:
        raise UserError(
            f"{PARAMS}: dedupe.holdout_share: no record of {len(order):,} falls into a share of "
            f"{settings.holdout_share}; raise it, or add data"
        )
    return Deduplicated(
        [records[index] for index in sorted(in_pool)], [records[index] for index in sorted(in_holdout)], removed
    )


def _fraction(id_: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the record and the purpose alone."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{id_}".encode()).digest()[:8]) / 2**64


def _without_equals(order: list[int], keys: Sequence[str], kind: str, remove: Any) -> list[int]:
    first: dict[str, int] = {}
    kept = []
    for index in order:
        favoured = first.setdefault(keys[index], index)
        if favoured == index:
            kept.append(index)
        else:
            remove(index, favoured, kind, 1.0)
    return kept


def _shingles(record: Record, n: int) -> frozenset[str]:
    """The word n-grams of prompt and response; a text of fewer words is one shingle."""
    words = WORDS.findall(f"{record.prompt}\n{record.response}".lower())
    return frozenset(" ".join(words[start : start + n]) for start in range(max(1, len(words) - n + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """|A n B| / |A u B|, 1 for two empty sets."""
    common = len(one & other)
    union = len(one) + len(other) - common
    return common / union if union else 1.0


def rows_per_band(threshold: float, permutations: int) -> int:
    """The largest r with (1 - threshold^r)^(permutations // r) <= MISSED: the fewest false candidates."""
    return max(
        (r for r in range(1, permutations + 1) if (1 - threshold**r) ** (permutations // r) <= MISSED), default=1
    )


def _near_duplicates(
    shingles: Sequence[frozenset[str]], settings: DedupeSettings
) -> Iterator[tuple[int, int | None, float | None]]:
    """For each position in order: the kept position that it is a near duplicate of and the similarity, or None."""
    import numpy as np
    from rensa import RMinHash

    digests = RMinHash.digests_from_token_sets([sorted(texts) for texts in shingles], settings.permutations, SEED)
    signatures = np.array(digests, dtype=np.uint32)
    rows = rows_per_band(settings.threshold, settings.permutations)
    bands = [
        np.ascontiguousarray(signatures[:, start : start + rows])
        for start in range(0, settings.permutations - rows + 1, rows)
    ]
    buckets: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in bands]
    for position in range(len(shingles)):
        keys = [band[position].tobytes() for band in bands]
        candidates = sorted({other for bucket, key in zip(buckets, keys, strict=True) for other in bucket.get(key, ())})
        similar = [(jaccard(shingles[position], shingles[other]), -other) for other in candidates]
        similarity, favoured = max(similar, default=(0.0, 0))
        if similarity >= settings.threshold:
            yield position, -favoured, similarity
            continue
        for bucket, key in zip(buckets, keys, strict=True):
            bucket[key].append(position)  # only what stays can be a reason for another to go
        yield position, None, None


def _near_across(
    shingles: Sequence[frozenset[str]], held: Sequence[int], rest: Sequence[int], threshold: float
) -> list[tuple[int, int, float]]:
    """(position in the rest, position in the holdout, similarity) for every record of the rest over the threshold."""
    if not held or not rest:
        return []
    from scipy.sparse import csr_matrix

    numbers: dict[str, int] = {}
    for position in held:
        for text in shingles[position]:
            numbers.setdefault(text, len(numbers))

    def matrix(positions: Sequence[int]) -> Any:
        rows, columns = [], []
        for row, position in enumerate(positions):
            known = [numbers[text] for text in shingles[position] if text in numbers]
            columns += known
            rows += [row] * len(known)
        return csr_matrix(([1] * len(rows), (rows, columns)), shape=(len(positions), len(numbers)), dtype="int32")

    common = (matrix(rest) @ matrix(held).T).tocoo()
    best: dict[int, tuple[float, int]] = {}
    for row, column, shared in zip(common.row, common.col, common.data, strict=True):
        position, other = rest[row], held[column]
        similarity = shared / (len(shingles[position]) + len(shingles[other]) - shared)
        if similarity >= threshold:
            best[position] = max(best.get(position, (0.0, 0)), (float(similarity), -other))
    return [(position, -other, similarity) for position, (similarity, other) in sorted(best.items())]


def _smallest(indices: Sequence[int], records: Sequence[Record], most: int | None) -> set[int]:
    """At most `most` of the indices: those of the smallest hash, a sample that new data hardly move."""
    return set(sorted(indices, key=lambda index: _fraction(records[index].id, "cap"))[:most])


def _shared(
    indices: Sequence[int],
    records: Sequence[Record],
    sources: Sequence[str],
    most: int | None,
    weights: dict[str, float],
) -> set[int]:
    """At most `most` of the indices, shared among the sources by weight; what one cannot fill goes to the others."""
    if most is None or len(indices) <= most:
        return set(indices)
    by_source: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        by_source[sources[index]].append(index)
    quotas = share_out(most, {name: len(held) for name, held in by_source.items()}, weights)
    return {index for name, held in by_source.items() for index in _smallest(held, records, quotas[name])}


def share_out(total: int, available: dict[str, int], weights: dict[str, float]) -> dict[str, int]:
    """How many of `total` each source gives: in proportion to its weight, never more than it has.

    Rounded down first; single records that are left go to the largest remainders, the first source winning ties.
    """
    quotas: dict[str, int] = {}
    open_ = dict(available)
    while open_:
        left = total - sum(quotas.values())
        unit = left / sum(weights[name] for name in open_)
        full = {name: count for name, count in open_.items() if count <= weights[name] * unit}
        if not full:
            exact = {name: weights[name] * unit for name in open_}
            quotas |= {name: math.floor(value) for name, value in exact.items()}
            by_remainder = sorted(open_, key=lambda name: math.floor(exact[name]) - exact[name])
            for name in by_remainder[: total - sum(quotas.values())]:
                quotas[name] += 1
            break
        quotas |= full
        open_ = {name: count for name, count in open_.items() if name not in full}
    return quotas


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.dedupe", description="Remove duplicates, then split off the holdout."
    )
    for name in ("records", "pool", "holdout", "duplicates", "candidates", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    with stage("dedupe"):
        settings = load_settings()
        records = read_records(options.records)
        weights = {name: source.weight for name, source in settings.ingest.sources.items()}
        result = deduplicate(records, settings.dedupe, weights)
        write_records(options.pool, result.pool)
        write_records(options.holdout, result.holdout)
        removed = pa.Table.from_pylist(result.removed, schema=tables.DUPLICATES)
        tables.write(options.duplicates, removed, tables.DUPLICATES)
        candidates = pa.table({"id": [record.id for record in result.pool]}, schema=tables.CANDIDATES)
        tables.write(options.candidates, candidates, tables.CANDIDATES)
        kinds = dict(sorted(Counter(row["kind"] for row in result.removed).items()))
        counts = {"records": len(records), "pool": len(result.pool), "holdout": len(result.holdout), "removed": kinds}
        tables.write_json(options.metrics, counts)
        left_out = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "nothing removed"
        print(f"dedupe: {len(result.pool):,} in the pool, {len(result.holdout):,} in the holdout; {left_out}")


if __name__ == "__main__":
    main()
