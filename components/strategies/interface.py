"""What every strategy takes and gives, and the budget that all of them keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numba import njit

from components.core.settings.select import SelectSettings

Floats = npt.NDArray[np.float64]


Integers = npt.NDArray[np.int64]


Flags = npt.NDArray[np.bool_]


NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Candidates:
    """The records to choose from, one entry each in everything; nan where a record is unscorable."""

    ids: Sequence[str]
    responses: Sequence[str]
    complexity: Floats
    nll_conditional: Floats
    """Nats per token."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scorable(self) -> Flags:
        return np.isfinite(self.complexity)

    @property
    def aligned(self) -> Flags:
        """Scorable, with a complexity below 1; from 1 on the prompt does not help to predict the response."""
        return self.scorable & (self.complexity < 1)


@dataclass(slots=True)
class Budget:
    """How many picks are left, in all and of each source. `left`, `owed` and `room` change with every pick.

    What it does not allow now it will not allow later: a strategy may drop the candidate.
    """

    left: Integers
    """Records, and response tokens."""
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
        """So many records, whatever their length and source."""
        tokens = np.asarray(tokens, np.int64)
        source = np.zeros(len(tokens), np.int64)
        return cls(np.array([records, NO_LIMIT]), tokens, source, np.array([0]), np.array([NO_LIMIT]))

    def allows(self, candidate: int) -> bool:
        return bool(allows(candidate, self.left, self.tokens, self.source, self.owed, self.room))

    def take(self, candidate: int) -> None:
        take(candidate, self.left, self.tokens, self.source, self.owed, self.room)


@njit(cache=True)
def allows(candidate: int, left: Integers, tokens: Integers, source: Integers, owed: Integers, room: Integers) -> bool:
    own = source[candidate]
    return bool(
        left[0] > 0
        and tokens[candidate] <= left[1]
        and room[own] > 0
        # the last picks are kept for the sources that are still owed some
        and (owed[own] > 0 or left[0] > owed.sum())
    )


@njit(cache=True)
def take(candidate: int, left: Integers, tokens: Integers, source: Integers, owed: Integers, room: Integers) -> None:
    own = source[candidate]
    left[0] -= 1
    left[1] -= tokens[candidate]
    room[own] -= 1
    owed[own] = max(owed[own] - 1, 0)


@dataclass(frozen=True, slots=True)
class Selection:
    """Picks in pick order, one entry each in every array; fewer than asked for where fewer are eligible."""

    indices: Integers
    diversity: Floats
    """At the time of the pick, as is the score; nan where the strategy has none."""
    score: Floats
    eligible: Flags
    """Which candidates the strategy chose from."""

    def __len__(self) -> int:
        return len(self.indices)


class Strategy(Protocol):
    def __call__(self, candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection: ...


def in_order(order: Iterable[int], score: Floats, eligible: Flags, budget: Budget) -> Selection:
    """Take the eligible in `order` while the budget lasts."""
    picks = []
    for candidate in order:
        if eligible[candidate] and budget.allows(candidate):
            budget.take(candidate)
            picks.append(candidate)
    indices = np.array(picks, np.int64)
    return Selection(indices, np.full(len(indices), np.nan), score[indices], eligible)


def falling(score: Floats) -> list[int]:
    """Indices by falling score, the lower index first where scores are equal, nan last."""
    order: list[int] = np.argsort(-score, kind="stable").tolist()
    return order


def similarity_to(tfidf: Any, row: int) -> Floats:
    """Cosine of each row's TF-IDF weights with those of one row, shape (rows,)."""
    found: Floats = (tfidf @ tfidf[row].T).toarray()[:, 0]
    return found
