"""How sure a mean is: intervals over the records of a holdout, for one model and for the difference of two.

A loss in nats per token weighs every token alike. Over records i with n_i scored tokens and mean loss l_i it is the
ratio R = sum(n_i l_i) / sum(n_i), and the records, not the tokens, are the independent observations. With R_(i), the
ratio without record i, its standard error is the jackknife's

    sqrt((N - 1) / N * sum((R_(i) - R)^2))        R_(i) - R = -n_i (l_i - R) / (sum(n) - n_i)

(Cochran, Sampling Techniques, 3rd edition, chapter 6), and the interval is R -+ t * standard error, with Student's t
for N - 1 degrees of freedom. The linear estimate of the variance (section 6.4 there) is too small where a few long
responses hold much of the weight.

The difference of two models takes R of each over the same records, and leaves a record out of both at once. Equal
weights give the mean, or the mean of the paired differences, and the textbook interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A weighted mean with its standard error, which is infinite for a single record."""

    mean: float
    standard_error: float
    records: int

    def half_width(self, confidence: float) -> float:
        """Of the two-sided interval."""
        return self._quantile(1 - (1 - confidence) / 2) * self.standard_error if self.records > 1 else math.inf

    def lower_bound(self, confidence: float) -> float:
        """One-sided: the true mean is above it with this confidence."""
        return self.mean - self._quantile(confidence) * self.standard_error if self.records > 1 else -math.inf

    def _quantile(self, probability: float) -> float:
        return _t_quantile(probability, self.records - 1)


def weighted_interval(values: Sequence[float] | FloatArray, weights: Sequence[float] | FloatArray) -> Interval:
    """The weighted mean over records; `values` and `weights` have one entry per record, weights are positive.

    Raises ValueError when there is no record.
    """
    mean, influences = ratio(values, weights)
    return _interval(mean, influences)


def difference_interval(
    first: tuple[Sequence[float] | FloatArray, Sequence[float] | FloatArray],
    second: tuple[Sequence[float] | FloatArray, Sequence[float] | FloatArray],
) -> Interval:
    """The weighted mean of `first` less that of `second`: values and weights of the same records, in the same order.

    Raises ValueError when there is no record.
    """
    (mean, influences), (other_mean, other_influences) = ratio(*first), ratio(*second)
    return _interval(mean - other_mean, influences - other_influences)


def detectable_difference(interval: Interval, confidence: float, power: float = 0.8) -> float:
    """The smallest true difference whose lower bound is above 0 in `power` of all cases, at this spread and size."""
    if interval.records < 2:
        return math.inf
    degrees = interval.records - 1
    return (_t_quantile(confidence, degrees) + _t_quantile(power, degrees)) * interval.standard_error


def ratio(values: Sequence[float] | FloatArray, weights: Sequence[float] | FloatArray) -> tuple[float, FloatArray]:
    """The weighted mean, and how far each record moves it: the mean with the record less the mean without it."""
    value, weight = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    assert value.shape == weight.shape, "one weight per value"
    if not len(value):
        raise ValueError("no record to take a mean of")
    total = math.fsum(weight)
    mean = math.fsum(weight * value) / total
    if len(value) == 1:
        return mean, np.zeros(1)  # without it nothing is left
    return mean, weight * (value - mean) / (total - weight)


def _interval(mean: float, influences: FloatArray) -> Interval:
    count = len(influences)
    if count == 1:
        return Interval(mean, math.inf, 1)
    return Interval(mean, math.sqrt((count - 1) / count * math.fsum(influences**2)), count)


def _t_quantile(probability: float, degrees: int) -> float:
    from scipy import stats  # slow to import, and no stage needs it before its work is done

    return float(stats.t.ppf(probability, degrees))
