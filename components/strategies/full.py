"""Every scorable record, in pool order: fine-tuning on all data. select.ratio does not count."""

from __future__ import annotations

import numpy as np

from components.core.settings.select import SelectSettings
from components.strategies.interface import Budget, Candidates, Selection, in_order


def select(candidates: Candidates, budget: Budget, settings: SelectSettings) -> Selection:  # noqa: ARG001
    everything = Budget.of(len(candidates), budget.tokens)
    return in_order(range(len(candidates)), np.ones(len(candidates)), candidates.scorable, everything)
