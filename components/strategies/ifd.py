"""Complexity alone, highest first: "cherry" data of the IFD paper (arXiv 2308.12032)."""

from __future__ import annotations

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Selection, falling, in_order


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:  # noqa: ARG001
    """Misaligned records are left out, as there."""
    return in_order(falling(candidates.complexity), candidates.complexity, candidates.aligned, budget)
