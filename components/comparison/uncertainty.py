"""How sure the difference of two arms is, with chance in the seeds and in the records that they are measured on.

An arm is trained once with each of S seeds, and every training is measured on the same N records. With D_s the
difference of the two trainings with seed s (each a weighted mean over the records, as in
components/evaluation/statistics.py), the difference of the arms is the mean D of the D_s. Its variance has two parts:

    V_records = (N - 1) / N * sum over records i of (mean over s of D_s,(i) - D_s)^2        the jackknife, per record
    V_seeds   = sum over seeds of (D_s - D)^2 / (S (S - 1))

and the interval is D -+ t * sqrt(V_records + V_seeds), with Student's t for Satterthwaite's degrees of freedom

    (V_records + V_seeds)^2 / (V_records^2 / (N - 1) + V_seeds^2 / (S - 1))

(Satterthwaite, Biometrics Bulletin 2, 1946). The sum of both parts is what resampling seeds and records at the same
time estimates (Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007), a little too large rather than
too small. But with three seeds to draw from, the bootstrap's own percentiles are too narrow where seeds differ much;
docs/compare.md has how often either interval holds the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.evaluation.statistics import ratio

CONFIDENCE = 0.95  # of two-sided intervals
POWER = 0.8

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and records; without a spread (one record and one seed) its error is infinite."""

    mean: float
    standard_error: float
    degrees: float
    """Of freedom."""

    @property
    def half_width(self) -> float:
        """Of the interval at CONFIDENCE."""
        return self._quantile(1 - (1 - CONFIDENCE) / 2) * self.standard_error

    @property
    def p_value(self) -> float:
        """Two-sided: how often chance alone gives a mean this far from 0."""
        from scipy import stats

        if self.standard_error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.mean) / self.standard_error, self.degrees))

    @property
    def visible(self) -> float:
        """The smallest true difference that such a comparison shows in POWER of all cases."""
        return (self._quantile(1 - (1 - CONFIDENCE) / 2) + self._quantile(POWER)) * self.standard_error

    def _quantile(self, probability: float) -> float:
        from scipy import stats

        return float(stats.t.ppf(probability, self.degrees))


def estimate(values: FloatArray, weights: FloatArray) -> Estimate:
    """The mean over seeds of an arm; `values` has shape (seeds, records), `weights` (records,)."""
    means, influences = _by_seed(values, weights)
    return _combine(means, influences)


def difference(first: FloatArray, second: FloatArray, weights: FloatArray) -> Estimate:
    """The mean of `first` less that of `second`; both have shape (seeds, records), row s of both has the same seed.

    One row stands for all seeds, as that of the untrained model.
    """
    means, influences = _by_seed(first, weights)
    other_means, other_influences = _by_seed(second, weights)
    return _combine(means - other_means, influences - other_influences)


def adjust(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order of `p_values` (Scandinavian Journal of Statistics 6, 1979).

    Below 0.05, a difference stands although several were asked for.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _by_seed(values: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The mean of each seed, and how far each record moves it: shapes (seeds,) and (seeds, records)."""
    parts = [ratio(row, weights) for row in values]
    return np.array([mean for mean, _ in parts]), np.array([influences for _, influences in parts])


def _combine(means: FloatArray, influences: FloatArray) -> Estimate:
    seeds, records = influences.shape
    of_records = (records - 1) / records * math.fsum(influences.mean(axis=0) ** 2) if records > 1 else math.inf
    of_seeds = float(means.var(ddof=1)) / seeds if seeds > 1 else 0.0
    total = of_records + of_seeds
    if not math.isfinite(total) or total == 0:
        return Estimate(float(means.mean()), math.sqrt(total), max(records - 1, 1))
    spread = of_records**2 / (records - 1) + (of_seeds**2 / (seeds - 1) if seeds > 1 else 0.0)
    return Estimate(float(means.mean()), math.sqrt(total), total**2 / spread)
