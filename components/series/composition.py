"""What the picks are made of, beside what they were picked from: sources, and lengths of responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceRow:
    """Records of one source in the pool, and among the picks of an iteration."""

    iteration: int
    source: str
    pool: int
    selected: int


@dataclass(frozen=True, slots=True)
class LengthRow:
    """Records of an iteration whose response has from `tokens` to `2 * tokens - 1` tokens."""

    iteration: int
    tokens: int
    """A power of 2; 0 for a response of which nothing was scored."""
    candidates: int
    """Scored by the iteration."""
    selected: int


def source_rows(sources: Mapping[str, str], picks: Mapping[int, Sequence[str]]) -> list[SourceRow]:
    """A row for each iteration and source of the pool, by falling size.

    `sources`: id -> source, of the whole pool; `picks`: iteration -> ids.
    """
    pool = Counter(sources.values())
    ordered = sorted(pool, key=lambda name: (-pool[name], name))
    rows = []
    for iteration, ids in picks.items():
        selected = Counter(sources[key] for key in ids)
        rows += [SourceRow(iteration, name, pool[name], selected[name]) for name in ordered]
    return rows


def length_rows(lengths: Mapping[int, Mapping[str, int]], picks: Mapping[int, Sequence[str]]) -> list[LengthRow]:
    """A row for each iteration and each class of lengths from the shortest to the longest that occurs anywhere.

    `lengths`: iteration -> id -> tokens of the response, of the records that it scored.
    """
    classes = _classes({length_class(tokens) for scored in lengths.values() for tokens in scored.values()})
    rows = []
    for iteration, scored in lengths.items():
        candidates = Counter(map(length_class, scored.values()))
        selected = Counter(length_class(scored[key]) for key in picks[iteration])
        rows += [LengthRow(iteration, tokens, candidates[tokens], selected[tokens]) for tokens in classes]
    return rows


def length_class(tokens: int) -> int:
    """The largest power of 2 that is not larger; 0 for 0."""
    return 1 << tokens.bit_length() - 1 if tokens else 0


def _classes(occurring: Iterable[int]) -> list[int]:
    """Every class between the smallest and the largest one, so that an axis has no gaps."""
    classes = sorted(occurring)
    if not classes:
        return []
    powers, power = [], max(classes[0], 1)
    while power <= classes[-1]:
        powers.append(power)
        power *= 2
    return [0, *powers] if classes[0] == 0 else powers
