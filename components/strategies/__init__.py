"""Selection strategies: one module each, chosen by `select.strategy`.

A new one is a function `(candidates, budget, settings) -> Selection` in a file of its own, and a line here.
"""

from __future__ import annotations

from components.strategies import deita, facility_location, full, ifd, iterit, k_center, longest, perplexity, random
from components.strategies.interface import Strategy

STRATEGIES: dict[str, Strategy] = {
    "iterit": iterit.select,
    "iterit-static": iterit.select,  # scored by the base model in every iteration
    "superfiltering": ifd.select,  # scored by a smaller model (arXiv 2402.00530)
    "ifd": ifd.select,
    "random": random.select,
    "longest": longest.select,
    "perplexity": perplexity.select,
    "k-center": k_center.select,
    "facility-location": facility_location.select,
    "deita-style": deita.select,
    "full": full.select,
}
