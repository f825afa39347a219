"""What a comparison will cost: counted from its cells and the texts of its pools, timed by a probe of the same cells.

A probe is a cell on a few records of the same sources, run by as many workers at a time as the comparison will have.
Each of its stages takes a fixed time and a time that grows with the tokens that the model reads there:

    seconds = (total - arithmetic) of the probe + arithmetic of the probe * tokens / tokens of the probe

The picks are not known before they are made: a pick is taken to have as many tokens as the mean record of the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from components.comparison.cells import Cell, scored_by
from components.comparison.facts import PASSES_TO_MEASURE, PASSES_TO_TRAIN, PoolFacts, Scoring
from components.model.throughput import ModelSize


@dataclass(frozen=True, slots=True)
class Timing:
    """A stage of the probe."""

    fixed: float
    """Seconds."""
    per_token: float
    """Seconds for each token that the model reads."""

    def seconds(self, tokens: float) -> float:
        return self.fixed + self.per_token * tokens


@dataclass(frozen=True, slots=True)
class Probe:
    """What was timed, by stage without its key: score, select, finetune, evaluate."""

    timings: Mapping[str, Timing]
    between: float
    """Seconds of a cell outside its stages: DVC, files from its cache."""
    cell_bytes: int
    """What a cell adds until its end: its checkpoints."""
    pool_bytes: int
    """What the pools' folders hold, most of it the base model."""


@dataclass(frozen=True, slots=True)
class Sized:
    """A pool as it is known after its stage `dedupe`."""

    facts: PoolFacts
    texts: Scoring
    """Tokens of each record, read twice; the holdout's are taken to be like the pool's."""

    @property
    def mean_tokens(self) -> float:
        """Of a record in both passes of scoring."""
        return sum(tokens for tokens, _ in self.texts.tokens.values()) / len(self.texts.tokens)

    @property
    def mean_scored(self) -> float:
        """Scored positions of a record, in both passes."""
        return sum(scored for _, scored in self.texts.tokens.values()) / len(self.texts.tokens)


@dataclass(frozen=True, slots=True)
class Work:
    """Records that are read: twice each to score and to measure, once to train."""

    scored: float = 0
    trained: float = 0
    measured: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.scored + other.scored, self.trained + other.trained, self.measured + other.measured)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a comparison will cost."""

    cells: int
    pools: int
    passes: int
    """Forward passes of choosing."""
    measuring_passes: int
    choosing_operations: float
    training_operations: float
    measuring_operations: float
    seconds: float
    bytes: int
    """While it runs; afterwards little is left."""


def shared_work(cells: Sequence[Cell], pool: Sized, *, trains: bool) -> Work:
    """What the cells of a pool share: its first scores by each model, and the evaluation of the base model."""
    models = {known for cell in cells if (known := scored_by(cell))}
    return Work(scored=len(models) * pool.facts.records, measured=pool.facts.holdout if trains else 0)


def cell_work(cell: Cell, pool: Sized, *, trains: bool) -> Work:
    """What a cell reads itself."""
    if not trains:
        return Work()
    picks = min(cell.settings.select.records_per_iteration(pool.facts.records), pool.facts.records)
    later = len(cell.settings.iterations) - 1
    again = cell.settings.score.model == "current"
    wanted = cell.settings.select.update_ratio * picks if cell.settings.select.update_ratio > 1 else pool.facts.records
    candidates = min(wanted, pool.facts.records) if again else 0
    return Work(scored=later * candidates, trained=(later + 1) * picks, measured=pool.facts.holdout)


def cell_seconds(cell: Cell, work: Work, pool: Sized, probe: Probe) -> float:
    """How long a cell takes; its first scores come from what it shares."""
    iterations = len(cell.settings.iterations)
    if not work.trained:
        return probe.between + probe.timings["select"].fixed
    # where no model scores, the stage `score` reads tables and texts as `select` does
    score = probe.timings["score" if cell.settings.score.model == "current" else "select"]
    return (
        probe.between
        + (iterations - 1) * score.fixed
        + probe.timings["score"].per_token * work.scored * pool.mean_tokens
        + iterations * (probe.timings["select"].fixed + probe.timings["finetune"].fixed)
        + probe.timings["finetune"].per_token * work.trained * pool.mean_tokens
        + probe.timings["evaluate"].seconds(work.measured * pool.mean_tokens)
    )


def shared_seconds(work: Work, pool: Sized, probe: Probe, workers: int) -> float:
    """How long the shared work of a pool takes, which has the whole machine."""
    read = {"score": work.scored, "evaluate": work.measured}
    timings = {name: probe.timings[name] for name, records in read.items() if records}
    computing = sum(timing.per_token * read[name] * pool.mean_tokens for name, timing in timings.items())
    return probe.between + sum(timing.fixed for timing in timings.values()) + computing / workers


def operations(work: Work, pool: Sized, size: ModelSize) -> tuple[float, float, float]:
    """Useful operations of choosing, training and measuring; a trained record is read once, with its prompt."""
    of_record = size.forward_operations(1, 0) * pool.mean_tokens + size.forward_operations(0, 1) * pool.mean_scored
    return work.scored * of_record, PASSES_TO_TRAIN * work.trained * of_record / 2, work.measured * of_record


def make_plan(
    cells: Mapping[str, Sequence[Cell]], pools: Mapping[str, Sized], probe: Probe, workers: int, *, trains: bool
) -> Plan:
    """The plan of cells by their pool."""
    total, seconds, counted = Work(), 0.0, [0.0, 0.0, 0.0]
    for name, of_pool in cells.items():
        pool, shared = pools[name], shared_work(of_pool, pools[name], trains=trains)
        works = {cell.name: cell_work(cell, pool, trains=trains) for cell in of_pool}
        seconds += shared_seconds(shared, pool, probe, workers)
        seconds += sum(cell_seconds(cell, works[cell.name], pool, probe) for cell in of_pool) / workers
        work = sum(works.values(), shared)
        counted = [one + more for one, more in zip(counted, operations(work, pool, pool.texts.size), strict=True)]
        total += work
    return Plan(
        cells=sum(map(len, cells.values())),
        pools=len(cells),
        passes=round(PASSES_TO_MEASURE * total.scored),
        measuring_passes=round(PASSES_TO_MEASURE * total.measured),
        choosing_operations=counted[0],
        training_operations=counted[1],
        measuring_operations=counted[2],
        seconds=seconds,
        bytes=probe.pool_bytes + workers * probe.cell_bytes,
    )
