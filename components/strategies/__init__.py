"""Selection strategies: one module each, chosen by `select.strategy`.

A new one is a function `(responses, complexity, k, settings) -> Selection` and a line here.
"""

from __future__ import annotations

from components.strategies import iterit
from components.strategies.selection import Selection, Strategy

STRATEGIES: dict[str, Strategy] = {
    "iterit": iterit.select,
}

__all__ = ["STRATEGIES", "Selection", "Strategy"]
