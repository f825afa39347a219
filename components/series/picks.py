"""How the picks change from iteration to iteration, and whether the hard records do.

A record is hard when it is among the k aligned records (complexity below 1) of the highest complexity, k being the
number of picks of its iteration. Only records that an iteration and the one before it have both scored are ranked, so
that a record is not newly hard for having been left out before. The paper's reason to choose again before every pass
(arXiv 2412.17365) is that many of the records that are hard after a pass were not before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Complexities = Mapping[str, float]  # id -> complexity of the scorable records, in the order of the scores


@dataclass(frozen=True, slots=True)
class PickRow:
    """An iteration's picks, in records."""

    iteration: int
    selected: int
    kept: int
    """Picked by the iteration before, too; 0 for the first."""
    new: int
    """Picked by no earlier iteration."""
    distinct: int
    """Picked by this iteration or an earlier one."""


@dataclass(frozen=True, slots=True)
class OverlapRow:
    """Records that two iterations have both picked."""

    iteration: int
    other: int
    shared: int
    share: float
    """Of the picks of `iteration`."""


@dataclass(frozen=True, slots=True)
class HardRow:
    """The hard records of an iteration that were not hard in the one before."""

    iteration: int
    records: int
    """Scored by both iterations."""
    hard: int
    newly_hard: int
    newly_hard_share: float
    """Of the hard ones."""


def pick_rows(picks: Mapping[int, Sequence[str]]) -> list[PickRow]:
    """`picks`: iteration -> ids, in the order of the iterations."""
    rows: list[PickRow] = []
    before: set[str] = set()
    seen: set[str] = set()
    for iteration, ids in picks.items():
        now = set(ids)
        rows.append(PickRow(iteration, len(now), len(now & before), len(now - seen), len(now | seen)))
        before, seen = now, now | seen
    return rows


def overlap_rows(picks: Mapping[int, Sequence[str]]) -> list[OverlapRow]:
    """A row for each pair of iterations, each with itself included; without the iterations that picked nothing."""
    sets = {iteration: set(ids) for iteration, ids in picks.items() if ids}
    return [
        OverlapRow(one, other, len(sets[one] & sets[other]), round(len(sets[one] & sets[other]) / len(sets[one]), 6))
        for one in sets
        for other in sets
    ]


def hard_rows(scores: Mapping[int, Complexities], counts: Mapping[int, int]) -> list[HardRow]:
    """A row for each iteration after the first that has records in common with the one before it.

    `scores`: iteration -> complexities, in the order of the iterations; `counts`: iteration -> number of its picks.
    """
    rows = []
    for before, now in pairwise(scores):
        common = [key for key in scores[now] if key in scores[before]]
        hard = _hardest(scores[now], common, counts[now])
        if hard:
            new = len(hard - _hardest(scores[before], common, counts[now]))
            rows.append(HardRow(now, len(common), len(hard), new, round(new / len(hard), 6)))
    return rows


def _hardest(complexity: Complexities, ids: Sequence[str], count: int) -> set[str]:
    aligned = [key for key in ids if complexity[key] < 1]
    return set(sorted(aligned, key=lambda key: -complexity[key])[:count])
