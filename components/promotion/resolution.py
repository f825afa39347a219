"""How small a difference the holdout can show, foreseen before the training from an earlier comparison.

The standard error of a paired difference falls with the root of the number of records. From a comparison over M records
with standard error s, over N records of the same kind

    s(N) = s sqrt(M / N)
    d(N) = (t(c, N - 1) + t(0.8, N - 1)) s(N)        c: gate.confidence, or its share by gate.horizon

and a challenger passes the gate in 80 % of all cases when it is better by gate.margin + d(N). N records can show the
margin when d(N) <= gate.margin. It is the sample size of a paired t test (Chow, Shao and Wang, Sample Size Calculations
in Clinical Research, 2nd edition, section 3.1), with t for both quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.core.errors import UserError
from components.core.files import read_json
from components.core.settings.gate import GateSettings
from components.data import tables
from components.evaluation.statistics import Interval, detectable_difference
from components.promotion.gate import TESTED, UNITS, Decision, compare, pair_records

REMEDY = "dedupe.holdout_share and dedupe.max_holdout make it larger"


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a holdout of so many records can show, and how that is known."""

    tested: str
    """`loss` or `mean_complexity`."""
    records: int
    margin: float
    least: float
    """The smallest true difference that passes the gate in 80 % of all cases; infinite for a single record."""
    enough: int | None
    """How many records can show the margin; None where there is no margin to show."""
    basis: str
    """The comparison whose spread was taken."""

    @property
    def is_too_small(self) -> bool:
        """Whether the holdout cannot show gate.margin; without a margin, whether it can show nothing at all."""
        return self.records < 2 or (self.enough is not None and self.records < self.enough)

    def __str__(self) -> str:
        if self.records < 2:
            return f"{self.records} holdout record can show no difference, so that no champion is replaced: {REMEDY}"
        least = f"{self.least:.2g}{UNITS[self.tested]}"
        if self.is_too_small:
            return (
                f"{self.records:,} holdout records cannot show gate.margin {self.margin:g}: only a model better by "
                f"{least} passes in 80 of 100 cases, by the spread of {self.basis}; "
                f"about {self.enough:,} records can: {REMEDY}"
            )
        return (
            f"{self.records:,} holdout records can show a difference of about {least} or more, "
            f"by the spread of {self.basis}"
        )


def foresee(settings: GateSettings, iterations: Sequence[str], metrics: Path, evaluations: Path) -> Resolution | None:
    """What the holdout can show, by the last comparison that this folder knows; None before there is any.

    That is the gate's own comparison with a champion, in metrics/register.json; without one, that of the last iteration
    with the base model, in the tables of `evaluations`. Where gate.metrics are several, the one that is worst off.
    """
    records = int(read_json(metrics / "dedupe.json")["holdout"])
    tested = list(dict.fromkeys(TESTED[metric] for metric in settings.metrics))
    if records < 2:
        return Resolution(tested[0], records, settings.margin, math.inf, None, "")
    spreads = list(_of_the_gate(tested, metrics / "register.json"))
    spreads = spreads or list(_of_the_chain(tested, settings, iterations, evaluations))
    foreseen = [resolution(name, spread, records, settings, basis) for name, spread, basis in spreads]
    return max(foreseen, key=lambda one: one.enough or 0, default=None)


def resolution(tested: str, spread: Interval, records: int, settings: GateSettings, basis: str) -> Resolution:
    """What so many records can show where two models differ as in `spread`."""
    least = settings.margin + _detectable(spread, records, settings.confidence_of_each)
    enough = records_to_show(settings.margin, spread, settings.confidence_of_each) if settings.margin else None
    return Resolution(tested, records, settings.margin, least, enough, basis)


def records_to_show(difference: float, spread: Interval, confidence: float) -> int:
    """The smallest number of records N with d(N) <= difference, which is above 0."""
    low, high = 1, 2
    while _detectable(spread, high, confidence) > difference:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _detectable(spread, middle, confidence) > difference else (low, middle)
    return high


def _detectable(spread: Interval, records: int, confidence: float) -> float:
    error = spread.standard_error * math.sqrt(spread.records / records)
    return detectable_difference(Interval(0.0, error, records), confidence)


def _of_the_gate(tested: Sequence[str], result: Path) -> Iterator[tuple[str, Interval, str]]:
    """What is tested, with its spread in the gate's last decision."""
    decided = read_json(result).get("gate") if result.is_file() else None
    differences = Decision.differences_from_json(decided["differences"]) if decided else {}
    for name in tested:
        if (one := differences.get(name)) and one.standard_error is not None:
            yield name, Interval(one.difference, one.standard_error, one.records), "the last comparison with a champion"


def _of_the_chain(
    tested: Sequence[str], settings: GateSettings, iterations: Sequence[str], evaluations: Path
) -> Iterator[tuple[str, Interval, str]]:
    """What is tested, with its spread between the base model and the last iteration that was evaluated."""
    places = {key: evaluations / f"{key}.parquet" for key in ("base", *iterations)}
    last = next((key for key in reversed(iterations) if places[key].is_file()), None)
    if last is None or not places["base"].is_file():
        return
    try:
        base, model = (tables.read(places[key], tables.EVALUATIONS) for key in ("base", last))
    except UserError:  # tables of an older version: this run writes them anew
        return
    pairs, _ = pair_records(base, model)
    if len(pairs) < 2:
        return
    for name in tested:
        one = compare(pairs, name, settings)
        assert one.standard_error is not None, "two records have a spread"
        spread = Interval(one.difference, one.standard_error, one.records)
        yield name, spread, f"iteration {last} against the base model"
