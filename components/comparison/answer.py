"""The answer of a comparison: for each pool and budget, what every arm reaches, and how sure that is.

An arm's row says **better** or **worse** only where the interval of its paired difference leaves 0 out and Holm's
correction over all arms of the group lets it stand; otherwise it says **not better**.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.comparison.cells import Cell, scored_by
from components.comparison.facts import PASSES_TO_SCORE, CellFacts, Picks, PoolFacts
from components.comparison.settings import Budget, Comparison
from components.comparison.uncertainty import CONFIDENCE, Estimate, FloatArray, adjust, difference, estimate

BETTER, WORSE, NOT_BETTER = "better", "worse", "not better"
FEW_SEEDS = 3  # with so many or fewer, the answer says how small a difference could have been seen
FEWEST_RECORDS = 2  # of a measure: one has no spread
DIGITS = 6


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """An arm less what it is compared with."""

    mean: float
    low: float
    high: float
    p_value: float
    adjusted_p_value: float
    """Holm's, over the arms of the group."""
    verdict: str
    visible: float | None
    """With few seeds: the smallest true difference that would have been seen in 80 of 100 cases."""


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What an arm reaches in one measure."""

    value: Mean
    against_baseline: Difference | None
    """None for the baseline itself."""
    against_base: Difference


@dataclass(frozen=True, slots=True)
class MeasureResult:
    """All arms in one measure."""

    name: str
    higher_is_better: bool
    records: int
    """That every cell was measured on."""
    base: Mean
    arms: Mapping[str, ArmResult]


@dataclass(frozen=True, slots=True)
class ArmFacts:
    """What an arm did, as means over its seeds."""

    distinct: float
    tokens: float
    passes: float
    """Forward passes of choosing."""
    choosing_operations: float
    training_operations: float
    noise_share: Sequence[float]
    """Of the picks, by iteration."""
    noise: Mapping[str, float]
    """Share of the picks that are spoiled, by kind, over all iterations."""


@dataclass(frozen=True, slots=True)
class GroupAnswer:
    """The arms that chose from one pool with one budget."""

    noise: float
    budget: Budget
    seeds: Sequence[int]
    pool: PoolFacts
    measures: Sequence[MeasureResult]
    facts: Mapping[str, ArmFacts]


@dataclass(frozen=True, slots=True)
class Answer:
    """The content of comparisons/NAME/answer.json."""

    name: str
    baseline: str
    trained: bool
    iterations: int
    forward_passes: int
    """Of choosing, in all cells; what cells share is counted once."""
    groups: Sequence[GroupAnswer]


@dataclass(frozen=True, slots=True)
class Finished:
    """A cell with what it gave."""

    cell: Cell
    facts: CellFacts
    measures: pa.Table | None
    """tables.MEASURES; None where nothing was trained."""


def make_answer(
    comparison: Comparison, finished: Sequence[Finished], pools: Mapping[str, PoolFacts], base: Mapping[str, pa.Table]
) -> Answer:
    """The answer of finished cells; `pools` and `base` (tables.MEASURES of the untrained model) are by the pool."""
    groups: dict[tuple[str, Budget], list[Finished]] = {}
    for one in finished:
        groups.setdefault((one.cell.pool, one.cell.budget), []).append(one)
    return Answer(
        name=comparison.name,
        baseline=comparison.baseline,
        trained=comparison.train,
        iterations=len(finished[0].cell.settings.iterations) if comparison.train else 1,
        forward_passes=count_passes(finished, pools),
        groups=[
            GroupAnswer(
                noise=cells[0].cell.noise,
                budget=budget,
                seeds=comparison.seeds,
                pool=pools[pool],
                measures=list(_measures(comparison, cells, base[pool])) if comparison.train else [],
                facts={arm: _arm_facts([one.facts for one in cells if one.cell.arm == arm]) for arm in comparison.arms},
            )
            for (pool, budget), cells in groups.items()
        ],
    )


def count_passes(finished: Sequence[Finished], pools: Mapping[str, PoolFacts]) -> int:
    """Forward passes of choosing in all cells; the first scores of a pool are computed once for all its cells."""
    shared = {
        (one.cell.pool, known): PASSES_TO_SCORE[one.cell.settings.score.measure] * pools[one.cell.pool].records
        for one in finished
        if (known := scored_by(one.cell))
    }
    return sum(shared.values()) + sum(picks.passes for one in finished for picks in one.facts.picks[1:])


def _measures(comparison: Comparison, cells: Sequence[Finished], base: pa.Table) -> Iterator[MeasureResult]:
    tables = [one.measures for one in cells if one.measures is not None]
    names = [name for name in pc.unique(base["measure"]).to_pylist() if all(_has(table, name) for table in tables)]
    for name in names:
        rows = [_rows(table, name) for table in tables]
        of_base = _rows(base, name)
        ids = [one for one in of_base if all(one in row for row in rows)]
        weights = np.array([of_base[one][1] for one in ids])
        values = {
            arm: np.array(
                [[row[one][0] for one in ids] for row, cell in zip(rows, cells, strict=True) if cell.cell.arm == arm]
            )
            for arm in comparison.arms
        }
        if len(ids) < FEWEST_RECORDS:
            continue
        higher = bool(base.filter(pc.equal(base["measure"], name))["higher_is_better"][0].as_py())
        yield _measure(comparison, name, higher, np.array([[of_base[one][0] for one in ids]]), values, weights)


def _has(table: pa.Table, name: str) -> bool:
    return bool(pc.any(pc.equal(table["measure"], name)).as_py())


def _rows(table: pa.Table, name: str) -> dict[str, tuple[float, float]]:
    """Id -> value and weight."""
    rows = table.filter(pc.equal(table["measure"], name))
    columns = (rows[column].to_pylist() for column in ("id", "value", "weight"))
    return {key: (value, weight) for key, value, weight in zip(*columns, strict=True)}


def _measure(
    comparison: Comparison,
    name: str,
    higher: bool,
    base: FloatArray,
    values: Mapping[str, FloatArray],
    weights: FloatArray,
) -> MeasureResult:
    """`base` has shape (1, records), each of `values` (seeds, records), `weights` (records,)."""
    few = len(comparison.seeds) <= FEW_SEEDS
    others = [arm for arm in comparison.arms if arm != comparison.baseline]
    to_baseline = {arm: difference(values[arm], values[comparison.baseline], weights) for arm in others}
    to_base = {arm: difference(values[arm], base, weights) for arm in comparison.arms}
    against_baseline, against_base = (
        dict(zip(found, _differences([*found.values()], higher, few), strict=True)) for found in (to_baseline, to_base)
    )
    return MeasureResult(
        name=name,
        higher_is_better=higher,
        records=len(weights),
        base=_mean(estimate(base, weights)),
        arms={
            arm: ArmResult(_mean(estimate(values[arm], weights)), against_baseline.get(arm), against_base[arm])
            for arm in comparison.arms
        },
    )


def _mean(found: Estimate) -> Mean:
    ends = (found.mean, found.mean - found.half_width, found.mean + found.half_width)
    return Mean(*(round(end, DIGITS) for end in ends))


def _differences(found: Sequence[Estimate], higher: bool, few: bool) -> list[Difference]:
    adjusted = adjust([one.p_value for one in found])
    differences = []
    for one, p_value in zip(found, adjusted, strict=True):
        mean = _mean(one)
        stands = p_value < 1 - CONFIDENCE and (mean.low > 0 or mean.high < 0)
        verdict = NOT_BETTER if not stands else BETTER if (one.mean > 0) == higher else WORSE
        visible = round(one.visible, DIGITS) if few else None
        differences.append(
            Difference(
                mean.mean,
                mean.low,
                mean.high,
                round(one.p_value, DIGITS),
                round(p_value, DIGITS),
                verdict,
                visible,
            )
        )
    return differences


def _arm_facts(cells: Sequence[CellFacts]) -> ArmFacts:
    def mean(values: Iterable[float]) -> float:
        return round(sum(values) / len(cells), DIGITS)

    picks: list[Picks] = [one for cell in cells for one in cell.picks]
    records = sum(one.records for one in picks)
    kinds = sorted({kind for one in picks for kind in one.noise})
    return ArmFacts(
        distinct=mean(cell.distinct for cell in cells),
        tokens=mean(cell.tokens for cell in cells),
        passes=mean(cell.passes for cell in cells),
        choosing_operations=mean(cell.choosing_operations for cell in cells),
        training_operations=mean(cell.training_operations for cell in cells),
        noise_share=[
            round(
                sum(sum(one.noise.values()) for one in of_iteration) / sum(one.records for one in of_iteration), DIGITS
            )
            for of_iteration in zip(*(cell.picks for cell in cells), strict=True)
        ],
        noise={kind: round(sum(one.noise.get(kind, 0) for one in picks) / records, DIGITS) for kind in kinds},
    )
