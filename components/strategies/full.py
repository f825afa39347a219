"""Strategy `full`: every scorable record, in pool order. The baseline of fine-tuning on all data."""

from __future__ import annotations

import numpy as np

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Selection, in_order


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:  # noqa: ARG001
    """From all scorable records, whatever the budget; the score is 1."""
    unlimited = Budget.of(len(candidates), budget.tokens)
    return in_order(range(len(candidates)), np.ones(len(candidates)), candidates.scorable, unlimited)
