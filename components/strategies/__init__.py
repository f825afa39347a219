"""Selection strategies, one module each: a function `select(candidates, budget, settings) -> Selection`.

A new one needs a file, a line here, and its name in components/core/settings/select.py.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from components.strategies.interface import Strategy

STRATEGIES = {  # select.strategy -> module
    "iterit": "iterit",
    "iterit-static": "iterit",  # scored by the base model in every iteration
    "ifd": "ifd",
    "superfiltering": "ifd",  # scored by a smaller model (arXiv 2402.00530)
    "perplexity": "perplexity",
    "longest": "longest",
    "k-center": "k_center",
    "facility-location": "facility_location",
    "deita-style": "deita",
    "random": "random",
    "random-fresh": "random_fresh",
    "random-balanced": "random_balanced",
    "rds+": "rds",
    "full": "full",
}


def load_strategy(name: str) -> Strategy:
    """The strategy's function. Only its module is imported, because iterit's needs numba and others do not."""
    return cast(Strategy, import_module(f"{__name__}.{STRATEGIES[name]}").select)
