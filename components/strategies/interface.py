"""The interface of a strategy: candidates in, a selection out, within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from components.core.settings.select import SelectSettings

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Matrix = npt.NDArray[np.float32]

NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Embeddings of length 1 of the examples of the target, and of the candidates, which may not fit the memory."""

    targets: Matrix
    """Shape (examples, width), at least one."""
    read: Callable[[], Iterator[tuple[Integers, Matrix]]]
    """Reads those of the scorable candidates from the beginning: their indices, and a row for each, in parts."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The records to choose from, one entry each in every array."""

    ids: Sequence[str]
    responses: Sequence[str]
    complexity: Floats
    """nan where a record is unscorable, everywhere with score.model: none."""
    nll_conditional: Floats
    """Nats per token; nan as in `complexity`."""
    scorable: Flags
    """Which candidates have something to score; without losses nothing more is known."""
    iteration: int = 1
    """For which iteration is chosen, from 1."""
    highest: float = math.inf
    """Aligned candidates with a higher complexity are left out (select.max_complexity_quantile)."""
    embeddings: Embeddings | None = None
    """None unless score.measure is embedding."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def aligned(self) -> Flags:
        """Which candidates have a complexity below 1, where the prompt helps, and not above `highest`."""
        return self.scorable & (self.complexity < 1) & (self.complexity <= self.highest)


@dataclass(slots=True)
class Budget:
    """How much may still be picked, in total and from each source; `left`, `owed` and `room` change with every pick.

    A candidate that is not allowed now is not allowed later either, so a strategy may drop it.
    """

    left: Integers
    """Records and response tokens that are left: shape (2,)."""
    tokens: Integers
    """Response tokens of each candidate."""
    source: Integers
    """Number of each candidate's source."""
    owed: Integers
    """Picks that each source must still get."""
    room: Integers
    """Picks that each source may still get."""

    @classmethod
    def of(cls, records: int, tokens: npt.ArrayLike) -> Budget:
        """A number of records, whatever their response tokens and sources."""
        tokens = np.asarray(tokens, np.int64)
        source = np.zeros(len(tokens), np.int64)
        return cls(np.array([records, NO_LIMIT]), tokens, source, np.array([0]), np.array([NO_LIMIT]))

    def allows(self, candidate: int) -> bool:
        """Whether the candidate may be picked."""
        return bool(allows(candidate, self.left, self.tokens, self.source, self.owed, self.room))

    def take(self, candidate: int) -> None:
        """Count the candidate as picked."""
        take(candidate, self.left, self.tokens, self.source, self.owed, self.room)


def allows(candidate: int, left: Integers, tokens: Integers, source: Integers, owed: Integers, room: Integers) -> bool:
    """Budget.allows as a function of arrays, which numba compiles in iterit.py."""
    its_source = source[candidate]
    return bool(
        left[0] > 0
        and tokens[candidate] <= left[1]
        and room[its_source] > 0
        # the last picks are reserved for sources that are still owed some
        and (owed[its_source] > 0 or left[0] > owed.sum())
    )


def take(candidate: int, left: Integers, tokens: Integers, source: Integers, owed: Integers, room: Integers) -> None:
    """Budget.take as a function of arrays, which numba compiles in iterit.py."""
    its_source = source[candidate]
    left[0] -= 1
    left[1] -= tokens[candidate]
    room[its_source] -= 1
    owed[its_source] = max(owed[its_source] - 1, 0)


@dataclass(frozen=True, slots=True)
class Selection:
    """Picks in pick order, one entry each in every array but `eligible`; there may be fewer than the budget allows."""

    indices: Integers
    """Of the candidates."""
    diversity: Floats
    """At the time of the pick; nan where the strategy does not compute it."""
    score: Floats
    """At the time of the pick: the criterion that the strategy maximizes."""
    eligible: Flags
    """Which candidates the strategy chose from."""

    def __len__(self) -> int:
        return len(self.indices)


class Strategy(Protocol):
    def __call__(self, candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection: ...


def in_order(order: Iterable[int], score: Floats, eligible: Flags, budget: Budget) -> Selection:
    """Pick the eligible candidates in `order` as far as the budget allows."""
    picks = []
    for candidate in order:
        if eligible[candidate] and budget.allows(candidate):
            budget.take(candidate)
            picks.append(candidate)
    indices = np.array(picks, np.int64)
    return Selection(indices, np.full(len(indices), np.nan), score[indices], eligible)


def descending(score: Floats) -> list[int]:
    """Indices by descending score; equal scores in index order, nan last."""
    order: list[int] = np.argsort(-score, kind="stable").tolist()
    return order


def similarity_to(tfidf: Any, row: int) -> Floats:
    """Cosine of each row's TF-IDF weights with those of `row`, shape (rows,)."""
    cosines: Floats = (tfidf @ tfidf[row].T).toarray()[:, 0]
    return cosines
