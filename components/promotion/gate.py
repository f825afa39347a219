"""The gate's decision: a retrained model replaces the champion only if it is better than chance explains.

Both models are evaluated on the same holdout records. For the loss and for the mean complexity (lower is better), as
far as gate.metrics names them, the challenger passes when

    lower bound of (champion - challenger) > gate.margin

The bound is one-sided, over paired records (components/evaluation/statistics.py). Its confidence is gate.confidence for
a single retraining, and 1 - (1 - gate.confidence) / gate.horizon where there are more to come: by Bonferroni's
inequality at least one false promotion among them has at most the probability 1 - gate.confidence, whatever the tests
have in common. Perplexity is exp(loss), so its test is that of the loss. No figure of gate.benchmarks may be worse than
its margin allows (components/promotion/benchmarks.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from components.core.settings.gate import GateSettings
from components.evaluation.holdout import DIGITS, Row, ends, scorable_rows, summarize
from components.evaluation.statistics import Interval, detectable_difference, difference_interval
from components.promotion.benchmarks import BenchmarkDifference

TESTED = {"loss": "loss", "perplexity": "loss", "mean_complexity": "mean_complexity"}  # metric -> what is tested
UNITS = {"loss": " nats", "mean_complexity": " of mean complexity"}


@dataclass(frozen=True, slots=True)
class Difference:
    """Champion - challenger over the same records: above 0 where the challenger is better."""

    difference: float
    lower_bound: float | None
    """One-sided, at `confidence`; None for a single record, which has neither bound nor interval."""
    interval_low: float | None
    """Ends of the two-sided interval at 95 %."""
    interval_high: float | None
    records: int
    """Scored by both models."""
    confidence: float
    margin: float
    detectable: float | None
    """The smallest true difference that passes in 80 % of all cases, at this number of records and this spread."""
    standard_error: float | None = None
    """Of `difference`; None for a single record, and in what an older version wrote."""

    @property
    def passes(self) -> bool:
        """Whether the challenger is better by more than the margin."""
        return self.lower_bound is not None and self.lower_bound > self.margin

    @property
    def is_undecided(self) -> bool:
        """Whether the challenger does not pass, but may be better by more than the margin."""
        return not self.passes and (self.interval_high is None or self.interval_high > self.margin)

    def __str__(self) -> str:
        if self.lower_bound is None or self.interval_low is None:
            return f"{self.difference:+.4f} without an interval"
        # an interval that holds the margin would seem to contradict the one-sided bound
        bound = f" (at least {self.lower_bound:+.4f})" if self.interval_low <= self.margin < self.lower_bound else ""
        return f"{self.difference:+.4f}{bound}, interval {self.interval_low:.4f} to {self.interval_high:.4f}"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a challenger was promoted, and why."""

    promoted: bool
    reason: str
    challenger: Mapping[str, float]
    """Its metrics on the holdout, by name."""
    champion: Mapping[str, float] | None
    """The champion's metrics on the same holdout; None when they were not compared."""
    champion_version: str | None
    evaluated_again: bool
    """Whether the champion was evaluated again, because what was logged with it cannot be compared."""
    differences: Mapping[str, Difference] = field(default_factory=dict)
    """By what was tested: `loss`, `mean_complexity`; empty when nothing was compared."""
    benchmarks: Mapping[str, BenchmarkDifference] = field(default_factory=dict)
    """By figure of gate.benchmarks; empty when there was no champion."""

    @property
    def verdict(self) -> str:
        """The outcome and its reason, for people."""
        if self.champion is None:
            return f"{'champion' if self.promoted else 'not the champion'}: {self.reason}"
        return f"{'promoted' if self.promoted else 'kept'}: {self.reason}"

    @property
    def resolution(self) -> str | None:
        """How small a difference the holdout can show, for people; None where the records have decided."""
        for name, difference in self.differences.items():
            if difference.is_undecided:
                if difference.detectable is None:
                    return "1 record can show no difference"
                least = f"{difference.detectable:.2g}{UNITS[name]}"
                return f"{difference.records} records can show a difference of {least} or more"
        return None

    @property
    def result(self) -> dict[str, Any]:
        """What metrics/register.json holds of it: no version's number, which another registry would count otherwise."""
        return {
            "promoted": self.promoted,
            "differences": {name: asdict(one) for name, one in self.differences.items()},
            "benchmarks": {figure: asdict(one) for figure, one in self.benchmarks.items()},
        }

    @property
    def benchmark_lines(self) -> list[str]:
        """The figures of gate.benchmarks, for people."""
        return [f"{figure}: {difference}" for figure, difference in self.benchmarks.items()]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Decision:
        """The decision from the JSON object of its fields."""
        benchmarks = {figure: BenchmarkDifference(**one) for figure, one in values.get("benchmarks", {}).items()}
        differences = cls.differences_from_json(values.get("differences", {}))
        return cls(**{**values, "differences": differences, "benchmarks": benchmarks})

    @staticmethod
    def differences_from_json(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Difference]:
        """The differences from the JSON objects of their fields."""
        return {name: Difference(**value) for name, value in values.items()}


def decide(
    challenger: pa.Table,
    champion: pa.Table | None,
    settings: GateSettings,
    *,
    champion_version: str | None = None,
    evaluated_again: bool = False,
    benchmarks: Mapping[str, BenchmarkDifference] | None = None,
) -> Decision:
    """Compare tables.EVALUATIONS of the same holdout; `champion` is None when there is no champion yet.

    `benchmarks`: the figures of gate.benchmarks, compared.
    Raises UserError when a model can score no record.
    """
    challenging = metrics_of(challenger, settings)
    if champion is None:
        return Decision(True, "there was no champion", challenging, None, None, False)
    reigning = metrics_of(champion, settings)
    pairs, lost = pair_records(champion, challenger)
    if lost:
        # a model that breaks on hard records must not gain by it
        reason = f"cannot score {lost} of the records that version {champion_version} scores"
        return Decision(
            False, reason, challenging, reigning, champion_version, evaluated_again, benchmarks=benchmarks or {}
        )
    differences = {
        name: compare(pairs, name, settings) for name in dict.fromkeys(TESTED[metric] for metric in settings.metrics)
    }
    refusing = [figure for figure, difference in (benchmarks or {}).items() if not difference.passes]
    promoted = all(difference.passes for difference in differences.values()) and not refusing
    reason = _describe(differences, settings)
    reason += f"; refused by {', '.join(refusing)}" if refusing else ""
    reason += f"; before: version {champion_version}" if promoted else f"; champion: version {champion_version}"
    return Decision(
        promoted, reason, challenging, reigning, champion_version, evaluated_again, differences, benchmarks or {}
    )


def metrics_of(evaluations: pa.Table, settings: GateSettings) -> dict[str, float]:
    """The metrics of gate.metrics. Raises UserError when the model can score no record."""
    metrics = summarize(evaluations)
    return {name: getattr(metrics, name) for name in settings.metrics}


def pair_records(champion: pa.Table, challenger: pa.Table) -> tuple[list[tuple[Row, Row]], int]:
    """The rows of the records that both models score, and the number of those that only the champion scores."""
    challenging = {row["id"]: row for row in scorable_rows(challenger)}
    rows = scorable_rows(champion)
    pairs = [(row, challenging[row["id"]]) for row in rows if row["id"] in challenging]
    return pairs, len(rows) - len(pairs)


def compare(pairs: Sequence[tuple[Row, Row]], name: str, settings: GateSettings) -> Difference:
    """The difference of `loss` or `mean_complexity`; `pairs`: the rows of champion and challenger, record by record."""
    first, second = (_values_and_weights(rows, name) for rows in zip(*pairs, strict=True))
    interval = difference_interval(first, second)
    low, high = ends(interval)
    return Difference(
        difference=round(interval.mean, DIGITS),
        lower_bound=_finite(interval.lower_bound(settings.confidence_of_each)),
        interval_low=low,
        interval_high=high,
        records=interval.records,
        confidence=round(settings.confidence_of_each, DIGITS),
        margin=settings.margin,
        detectable=_detectable(interval, settings),
        standard_error=_finite(interval.standard_error),
    )


def choose(holdouts: Mapping[str, Mapping[str, float]], settings: GateSettings) -> str:
    """The iteration whose checkpoint is registered: the last, or the best by the first metric, of equals the earliest.

    `holdouts`: iteration -> metrics on the holdout, in the order of the iterations.
    """
    if settings.register_ == "last":
        return list(holdouts)[-1]
    return min(holdouts, key=lambda key: holdouts[key][settings.metrics[0]])


def _values_and_weights(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    if name == "loss":
        return [row["nll_conditional"] for row in rows], [row["tokens"] for row in rows]
    return [row["complexity"] for row in rows], [1.0] * len(rows)


def _detectable(interval: Interval, settings: GateSettings) -> float | None:
    return _finite(settings.margin + detectable_difference(interval, settings.confidence_of_each))


def _finite(value: float) -> float | None:
    return round(value, DIGITS) if math.isfinite(value) else None


def _describe(differences: Mapping[str, Difference], settings: GateSettings) -> str:
    several = len(differences) > 1
    figures = "; ".join(
        f"{name} {difference}" if several else str(difference) for name, difference in differences.items()
    )
    count = next(iter(differences.values())).records
    margin = f", margin {settings.margin:g}" if settings.margin else ""
    horizon = f", one of {settings.horizon} retrainings" if settings.horizon > 1 else ""
    return f"{figures}, {count} record{'s' if count != 1 else ''}{margin}{horizon}"
