"""What every strategy takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from components.settings import SelectSettings


@dataclass(frozen=True, slots=True)
class Selection:
    """Picks in pick order, one entry each in every array; fewer than asked for where fewer are eligible."""

    indices: npt.NDArray[np.int64]
    complexity: npt.NDArray[np.float64]
    diversity: npt.NDArray[np.float64]
    """At the time of the pick, as is the score."""
    score: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.indices)


class Strategy(Protocol):
    def __call__(
        self, responses: Sequence[str], complexity: npt.NDArray[np.float64], k: int, settings: SelectSettings
    ) -> Selection: ...


def is_eligible(complexity: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Below 1; from 1 on a record is misaligned, and without a finite number it is unscorable."""
    return np.isfinite(complexity) & (complexity < 1)
