"""What `dedupe` has to do, by comparing every pair of records: all similarities, then the rules one by one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from components.core.settings.dedupe import DedupeSettings
from components.data.records import Record
from components.data.tables import Removal

WORDS = re.compile(r"\w+")


def shingle(record: Record, n: int) -> frozenset[str]:
    """The word n-grams of prompt and response, in lower case."""
    text = f"{record.prompt}\n{record.response}".lower()
    words = WORDS.findall(text)
    if not words:
        return frozenset({text})
    return frozenset(" ".join(words[start : start + n]) for start in range(max(1, len(words) - n + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard similarity: the size of the intersection by that of the union."""
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def similarities(sets: Sequence[frozenset[str]]) -> Any:
    """`jaccard` of every pair of sets, as an array."""
    columns: dict[str, int] = {}
    rows = [[columns.setdefault(text, len(columns)) for text in texts] for texts in sets]
    bounds = np.cumsum([0, *map(len, rows)])
    incidence = csr_matrix((np.ones(bounds[-1], np.int64), np.concatenate(rows), bounds), (len(sets), len(columns)))
    common = (incidence @ incidence.T).toarray()
    sizes = np.diff(bounds)
    return common / (sizes[:, None] + sizes[None, :] - common)


def fraction(record: Record, purpose: str) -> float:
    """A number in [0, 1) that depends only on the record's id and the purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{record.id}".encode()).digest()[:8]) / 2**64


def plain_deduplicate(
    records: Sequence[Record], settings: DedupeSettings, targets: Sequence[Record]
) -> tuple[list[Record], list[Record], list[Removal]]:
    """Pool, holdout and the other records, without dedupe.max_records."""
    alike = similarities([shingle(record, settings.ngram) for record in [*records, *targets]])
    kept: list[int] = []
    removed: list[Removal] = []

    def remove(index: int, by: Record, kind: str, similarity: float) -> None:
        removed.append(Removal(records[index].id, records[index].source, by.id, kind, similarity))

    def nearest(index: int, others: Sequence[int]) -> tuple[float, int]:
        """Similarity and index of the most similar of the others, the lowest index of equals."""
        similarity, negated = max(((alike[index, other], -other) for other in others), default=(0.0, 0))
        return float(similarity), -negated

    def keep(index: int, held: Sequence[int]) -> bool:
        record = records[index]
        for kind, key in (("same_record", "id"), ("same_response", "response")):
            same = [other for other in kept if getattr(records[other], key).strip() == getattr(record, key).strip()]
            if same and (kind == "same_record" or settings.same_response):
                remove(index, records[same[-1]], kind, 1.0)
                return False
        for kind, others in (("near_holdout", held), ("near", kept if settings.near else [])):
            similarity, other = nearest(index, others)
            if similarity >= settings.threshold:
                remove(index, records[other], kind, similarity)
                return False
        kept.append(index)
        return True

    falls = [fraction(record, "holdout") < settings.holdout_share for record in records]
    for_holdout = [index for index, held in enumerate(falls) if held and keep(index, [])]
    by_cap = sorted(for_holdout, key=lambda index: fraction(records[index], "cap"))
    holdout = sorted(by_cap[: settings.max_holdout])
    for_pool = []
    for index in (index for index, held in enumerate(falls) if not held):
        record = records[index]
        same = [one for one in targets if one.id == record.id]
        same += [one for one in targets if settings.same_response and one.response.strip() == record.response.strip()]
        similarity, other = nearest(index, range(len(records), len(records) + len(targets)))
        if same:
            remove(index, same[0], "like_target", 1.0)
        elif similarity >= settings.threshold:
            remove(index, targets[other - len(records)], "like_target", similarity)
        else:
            for_pool.append(index)
    pool = [index for index in for_pool if keep(index, holdout)]
    over_cap = (records[index] for index in sorted({*for_holdout} - {*holdout}))
    removed += [Removal(record.id, record.source, None, "over_cap", None) for record in over_cap]
    return [records[index] for index in pool], [records[index] for index in holdout], removed
