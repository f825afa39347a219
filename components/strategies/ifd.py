"""Strategies `ifd` and `superfiltering`: the highest complexity, "cherry" data of the IFD paper (arXiv 2308.12032)."""

from __future__ import annotations

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Selection, descending, in_order


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:  # noqa: ARG001
    """From the aligned records, as in the paper; the score is the complexity."""
    return in_order(descending(candidates.complexity), candidates.complexity, candidates.aligned, budget)
