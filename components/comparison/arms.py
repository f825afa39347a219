"""The arms that a comparison knows by name: the parameters, by dotted key, that make each what it is."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

CAPPED = 0.7  # quantile of complexity above which the capped arms pick nothing
SEED_OFFSETS = {"full": 1_000_003}  # added to select.seed: its order must not be that of `random-fresh`


def _arm(strategy: str, model: str, *, measure: str = "complexity", capped: bool = False) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "select.strategy": strategy,
            "select.max_complexity_quantile": CAPPED if capped else None,
            "score.model": model,
            "score.measure": measure,
        }
    )


ARMS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "random": _arm("random", "none"),
        "random-fresh": _arm("random-fresh", "none"),
        "random-balanced": _arm("random-balanced", "none"),
        # a pass over the whole pool in random order, stopped after as many records as the other arms train on
        "full": _arm("random-fresh", "none"),
        "longest": _arm("longest", "none"),
        "iterit": _arm("iterit", "current"),
        "iterit-capped": _arm("iterit", "current", capped=True),
        "iterit-static": _arm("iterit-static", "base"),
        "superfiltering": _arm("superfiltering", "proxy"),
        "ifd": _arm("ifd", "current"),
        "ifd-capped": _arm("ifd", "current", capped=True),
        "rds+": _arm("rds+", "base", measure="embedding"),
        "perplexity": _arm("perplexity", "current"),
        "k-center": _arm("k-center", "current"),
        "deita-style": _arm("deita-style", "current"),
    }
)
