"""The difference of two proportions over the same documents, each of which is right or wrong: Tango's score interval.

With b documents that only the first model has right, c that only the second has, and n in all, the difference D of the
proportions lies above the lower bound where (Tango, Equivalence test and confidence interval for the difference in
proportions for the paired-sample design, Statistics in Medicine 17, 1998)

    (b - c - n D) / sqrt(n (2 q + D (1 - D))) = z
    q = (sqrt(B^2 - 4 A C) - B) / (2 A)        A = 2 n,  B = (2 n - b + c) D - b - c,  C = -c D (1 - D)

with z the normal quantile of the confidence, and q the likeliest share of c where the difference is D. An interval from
the spread alone would be certain of what it cannot know where both models answer all of a few documents alike.
"""

from __future__ import annotations

import math


def lower_bound(gained: int, lost: int, documents: int, confidence: float) -> float:
    """One-sided: the true difference of the proportions is above it with this confidence.

    `gained`, `lost`: documents that only the first, only the second model has right.
    """
    from scipy import optimize, stats  # slow to import, and most runs need neither

    z = float(stats.norm.ppf(confidence))
    difference = (gained - lost) / documents
    least, most = -1 + 1e-9, difference - 1e-9
    if most <= least or _score(gained, lost, documents, least) <= z:
        return -1.0
    if _score(gained, lost, documents, most) >= z:  # nothing is left to chance: all documents are gained
        return difference
    return float(optimize.brentq(lambda one: _score(gained, lost, documents, one) - z, least, most))


def upper_bound(gained: int, lost: int, documents: int, confidence: float) -> float:
    """One-sided: the true difference of the proportions is below it with this confidence."""
    return -lower_bound(lost, gained, documents, confidence)


def _score(gained: int, lost: int, documents: int, difference: float) -> float:
    """Tango's statistic, which falls from infinity to minus infinity as the difference grows."""
    a = 2 * documents
    b = (2 * documents - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = documents * (2 * share + difference * (1 - difference))
    excess = gained - lost - documents * difference
    return excess / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, excess)
