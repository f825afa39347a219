r"""Split off the holdout and remove duplicates; say of every record that is left out in favour of what.

    same_record     the same content id
    same_response   the same response to another prompt (dedupe.same_response)
    near_holdout    Jaccard similarity of the sets of word n-grams with a record of the holdout >= dedupe.threshold
    near            the same with any other record that stays (dedupe.near)

A record belongs to the holdout's share or to the pool's by a hash of its content id. The holdout's share is compared
with itself first, then the pool's with all that stayed before: so it is the pool that yields, and data added to the
pool's share never move the holdout. A record goes only in favour of one that stays and that it was compared with: no
chains of loose matches. (One that stays may still be over a cap, and says so; it is never trained on, either.)

MinHash finds candidates for `near`: a signature of `permutations` minima is cut into b bands of r rows, and two
records are candidates when a whole band agrees, which happens with probability 1 - (1 - s^r)^b for records of
similarity s (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4). r is the largest for which a pair at the
threshold is missed with at most 1 %. The similarity of every candidate pair is then computed exactly. `near_holdout`
is exact from the start, by a product of sparse matrices: nothing that is tested is trained on.

    python -m components.dedupe --records data/raw.parquet --pool data/pool.parquet --holdout data/holdout.parquet ...
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
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
from components.provenance.statements import statement_of

MISSED = 0.01  # share of the pairs at the threshold that MinHash may miss
SEED = 1  # of the hash functions
BLOCK = 512  # records compared with the holdout at a time: 512 x 2,600 similarities are 11 MB
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
    share = [_fraction(record.id, "holdout") < settings.holdout_share for record in records]
    shingles = [shingle(record, settings.ngram) for record in records]
    stays = _Stays(records, shingles, settings)
    for_holdout = [index for index, held in enumerate(share) if held and stays.add(index)]
    holdout = _smallest(for_holdout, records, settings.max_holdout)
    for_pool = [index for index, held in enumerate(share) if not held]
    like_holdout = near_across(shingles, for_pool, sorted(holdout), settings.threshold)
    for_pool = [index for index in for_pool if stays.add(index, like_holdout.get(index))]
    _refuse_too_many(stays.removed, len(records), settings.max_removed_share)
    pool = _shared(for_pool, records, settings.max_records, weights)
    if not pool:
        raise UserError(
            f"{PARAMS}: dedupe.holdout_share: no record is left for the pool of {len(records):,} read; "
            "add data, or lower the share"
        )
    if not holdout:
        raise UserError(
            f"{PARAMS}: dedupe.holdout_share: none of {len(records):,} records falls into a share of "
            f"{settings.holdout_share}; raise it, or add data"
        )
    for index in sorted({*for_holdout, *for_pool} - holdout - pool):
        stays.remove(index, None, "over_cap", None)
    return Deduplicated(
        [records[index] for index in sorted(pool)], [records[index] for index in sorted(holdout)], stays.removed
    )


class _Stays:
    """The records that stay so far, findable by id, response and bands of their MinHash; and what was removed."""

    def __init__(self, records: Sequence[Record], shingles: Sequence[frozenset[str]], settings: DedupeSettings) -> None:
        self.removed: list[dict[str, Any]] = []
        self._records, self._shingles, self._settings = records, shingles, settings
        self._by_id: dict[str, int] = {}
        self._by_response: dict[str, int] = {}
        self._bands = _signature_bands(shingles, settings) if settings.near and records else []
        self._buckets: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in self._bands]

    def add(self, index: int, like_holdout: tuple[int, float] | None = None) -> bool:
        """Whether the record stays; where it does not, a row of `removed` says why."""
        record = self._records[index]
        response = record.response.strip()
        if record.id in self._by_id:
            self.remove(index, self._by_id[record.id], "same_record", 1.0)
        elif self._settings.same_response and response in self._by_response:
            self.remove(index, self._by_response[response], "same_response", 1.0)
        elif like_holdout:
            self.remove(index, like_holdout[0], "near_holdout", like_holdout[1])
        elif near := self._near(index):
            self.remove(index, near[0], "near", near[1])
        else:
            self._by_id[record.id] = self._by_response[response] = index
            for bucket, band in zip(self._buckets, self._bands, strict=True):
                bucket[band[index]].append(index)
            return True
        return False

    def remove(self, index: int, kept: int | None, kind: str, similarity: float | None) -> None:
        record, kept_id = self._records[index], None if kept is None else self._records[kept].id
        row = {"id": record.id, "source": record.source, "kept_id": kept_id, "kind": kind, "similarity": similarity}
        self.removed.append(row)

    def _near(self, index: int) -> tuple[int, float] | None:
        """The most similar record that stays and its similarity, from the threshold up; the earlier one of two."""
        found = {
            other
            for bucket, band in zip(self._buckets, self._bands, strict=True)
            for other in bucket.get(band[index], ())
        }
        similar = [(jaccard(self._shingles[index], self._shingles[other]), -other) for other in found]
        similarity, other = max(similar, default=(0.0, 0))
        return (-other, similarity) if similarity >= self._settings.threshold else None


def _refuse_too_many(removed: Sequence[dict[str, Any]], total: int, limit: float) -> None:
    if len(removed) <= limit * total:
        return
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(row["kind"] for row in removed).most_common())
    raise UserError(
        f"{PARAMS}: dedupe.max_removed_share: {len(removed):,} of {total:,} records are duplicates ({kinds}), "
        f"more than {limit}; look at the sources, or raise dedupe.threshold"
    )


def _fraction(id_: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the record and the purpose alone."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{id_}".encode()).digest()[:8]) / 2**64


def shingle(record: Record, n: int) -> frozenset[str]:
    """The word n-grams of prompt and response; a text of fewer words is one shingle, one without words itself is."""
    text = f"{record.prompt}\n{record.response}".lower()
    words = WORDS.findall(text)
    if not words:
        return frozenset({text})  # not the empty text, or all of them would be alike
    return frozenset(" ".join(words[start : start + n]) for start in range(max(1, len(words) - n + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """|A n B| / |A u B|; the sets are not empty."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def rows_per_band(threshold: float, permutations: int) -> int:
    """The largest r with (1 - threshold^r)^(permutations // r) <= MISSED: the fewest false candidates."""
    return max(
        (r for r in range(1, permutations + 1) if (1 - threshold**r) ** (permutations // r) <= MISSED), default=1
    )


def _signature_bands(shingles: Sequence[frozenset[str]], settings: DedupeSettings) -> list[list[bytes]]:
    """For each band the bytes of each record's rows in it: equal bytes make two records candidates."""
    import numpy as np
    from rensa import RMinHash

    # the seed of the hash functions is fixed: the same texts have the same signature in every process
    digests = RMinHash.digests_from_token_sets([sorted(texts) for texts in shingles], settings.permutations, SEED)
    signatures = np.array(digests, dtype=np.uint32)
    rows = rows_per_band(settings.threshold, settings.permutations)
    return [
        [row.tobytes() for row in signatures[:, start : start + rows]]
        for start in range(0, settings.permutations - rows + 1, rows)
    ]


def near_across(
    shingles: Sequence[frozenset[str]], rest: Sequence[int], held: Sequence[int], threshold: float
) -> dict[int, tuple[int, float]]:
    """For each index of the rest the most similar index of `held` and the similarity, from the threshold up."""
    if not held:
        return {}
    import numpy as np
    from scipy.sparse import csr_matrix

    numbers: dict[str, int] = {}
    for index in held:
        for text in shingles[index]:
            numbers.setdefault(text, len(numbers))

    def occurrences(indices: Sequence[int]) -> Any:
        columns = [[numbers[text] for text in shingles[index] if text in numbers] for index in indices]
        bounds = np.cumsum([0, *map(len, columns)])
        flat = np.fromiter((column for row in columns for column in row), dtype=np.int32, count=int(bounds[-1]))
        return csr_matrix((np.ones(len(flat), np.int32), flat, bounds), shape=(len(indices), len(numbers)))

    of_held = occurrences(held).T.tocsr()
    held_sizes = np.array([len(shingles[index]) for index in held])
    found: dict[int, tuple[int, float]] = {}
    for start in range(0, len(rest), BLOCK):
        block = rest[start : start + BLOCK]
        common = (occurrences(block) @ of_held).toarray()
        sizes = np.array([len(shingles[index]) for index in block])
        similarities = common / (sizes[:, None] + held_sizes[None, :] - common)
        best = similarities.argmax(axis=1)  # the first of equals
        for row in map(int, np.flatnonzero(similarities[np.arange(len(block)), best] >= threshold)):
            found[block[row]] = (held[best[row]], float(similarities[row, best[row]]))
    return found


def _smallest(indices: Sequence[int], records: Sequence[Record], most: int | None) -> set[int]:
    """At most `most` of the indices: those of the smallest hash, a sample that new data hardly move."""
    return set(sorted(indices, key=lambda index: _fraction(records[index].id, "cap"))[:most])


def _shared(indices: Sequence[int], records: Sequence[Record], most: int | None, weights: dict[str, float]) -> set[int]:
    """At most `most` of the indices, shared among the sources by weight; what one cannot fill goes to the others."""
    if most is None or len(indices) <= most:
        return set(indices)
    by_source: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        by_source[records[index].source].append(index)
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
    with stage("dedupe") as running, statement_of(running.name):
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
        write_json(options.metrics, counts)
        left_out = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "nothing removed"
        print(f"dedupe: {len(result.pool):,} in the pool, {len(result.holdout):,} in the holdout; {left_out}")


if __name__ == "__main__":
    main()
