"""Whether a challenger is worse on a benchmark than the champion, beyond gate.benchmarks: document by document.

The difference is taken over the same documents, so that above 0 the challenger is better; of a perplexity it is that of
the nats per word or byte, with these as weights (components/evaluation/statistics.py). A figure refuses the challenger
when the one-sided lower bound of the difference is below minus its margin: a test of non-inferiority.

Where every document is right or wrong, the interval is that of matched proportions, in proportions.py beside this file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.core.files import read_json
from components.core.settings.gate import GateSettings
from components.data import tables
from components.evaluation.holdout import CONFIDENCE, DIGITS, Row, ends
from components.evaluation.statistics import difference_interval
from components.promotion.proportions import lower_bound, upper_bound

CONDITIONS = ("harness", "batch_size", "limit", "apply_chat_template")  # of all tasks
TASK_CONDITIONS = ("version", "config", "template", "data", "fewshot")


@dataclass(frozen=True, slots=True)
class BenchmarkFiles:
    """Where the benchmarks of a checkpoint are stored."""

    documents: Path
    """tables.BENCHMARKS."""
    result: Path
    """JSON with the conditions under which they were made, such as metrics/benchmark/3.json."""


@dataclass(frozen=True, slots=True)
class Benchmarked:
    """What is stored of the benchmarks of a checkpoint."""

    checkpoint: str
    """Its digest."""
    conditions: Mapping[str, str]
    """Task -> what decides what was measured, as JSON: harness, prompts, documents."""
    groups: Mapping[str, Sequence[str]]
    """Group -> its tasks."""
    documents: pa.Table
    """tables.BENCHMARKS."""

    def tasks(self, figure: str) -> Sequence[str]:
        """The tasks whose documents a figure is over."""
        name = figure.partition("/")[0]
        return self.groups.get(name, [name])

    def is_comparable(self, other: Benchmarked, figures: Iterable[str]) -> bool:
        """Whether both measured the same thing, as far as the figures go."""
        tasks = {task for figure in figures for task in self.tasks(figure)}
        return all(task in other.conditions and self.conditions[task] == other.conditions[task] for task in tasks)


@dataclass(frozen=True, slots=True)
class BenchmarkDifference:
    """How much better the challenger is on a figure than the champion."""

    difference: float
    lower_bound: float | None
    """One-sided, at `confidence`; None for a single document, or none."""
    interval_low: float | None
    """Ends of the two-sided interval at 95 %."""
    interval_high: float | None
    documents: int
    """That both models have a value for."""
    lost: int
    """Documents that only the champion has a value for."""
    confidence: float
    margin: float
    """By how much the challenger may be worse."""

    @property
    def passes(self) -> bool:
        """Whether it is not worse by more than the margin."""
        return not self.lost and self.lower_bound is not None and self.lower_bound >= -self.margin

    def __str__(self) -> str:
        verdict = "not worse by more than" if self.passes else "may be worse by more than"
        if self.lost:
            return f"no value for {self.lost:,} documents that the champion has one for: refused"
        documents = f"{self.documents:,} document{'s' if self.documents != 1 else ''}"
        if self.lower_bound is None:
            return f"{self.difference:+.4f} without an interval, {documents}: {verdict} {self.margin:g}"
        return (
            f"{self.difference:+.4f} (at least {self.lower_bound:+.4f}), interval {self.interval_low:.4f} to "
            f"{self.interval_high:.4f}, {documents}: {verdict} {self.margin:g}"
        )


def read_benchmarked(files: BenchmarkFiles) -> Benchmarked:
    """The stored benchmarks of a checkpoint. Raises UserError when a file is missing or unreadable."""
    return make_benchmarked(read_json(files.result), tables.read(files.documents, tables.BENCHMARKS))


def make_benchmarked(result: Mapping[str, Any], documents: pa.Table) -> Benchmarked:
    """The benchmarks of a checkpoint from the two things that are stored of them."""
    common = [result[key] for key in CONDITIONS]
    return Benchmarked(
        checkpoint=result["checkpoint"],
        conditions={
            name: json.dumps([*common, *(task[key] for key in TASK_CONDITIONS)])
            for name, task in result["tasks"].items()
        },
        groups={name: group["tasks"] for name, group in result["groups"].items()},
        documents=documents,
    )


def compare_benchmarks(
    champion: Benchmarked, challenger: Benchmarked, settings: GateSettings
) -> dict[str, BenchmarkDifference]:
    """The figures of gate.benchmarks, by name; both measured the same thing (is_comparable)."""
    return {figure: _compare(champion, challenger, figure, settings) for figure in settings.benchmarks}


def _compare(
    champion: Benchmarked, challenger: Benchmarked, figure: str, settings: GateSettings
) -> BenchmarkDifference:
    tasks, metric = challenger.tasks(figure), figure.partition("/")[2]
    reigning, challenging = (_rows(one.documents, tasks, metric) for one in (champion, challenger))
    pairs = [(row, challenging[key]) for key, row in reigning.items() if key in challenging]
    confidence = settings.confidence_of_each
    difference, bound, low, high = _bounds(pairs, confidence) if pairs else (0.0, None, None, None)
    return BenchmarkDifference(
        difference=round(difference, DIGITS),
        lower_bound=bound,
        interval_low=low,
        interval_high=high,
        documents=len(pairs),
        lost=len(reigning) - len(pairs),
        confidence=round(confidence, DIGITS),
        margin=settings.benchmarks[figure],
    )


def _rows(documents: pa.Table, tasks: Sequence[str], metric: str) -> dict[tuple[str, int], Row]:
    return {
        (row["task"], row["document"]): row
        for row in documents.to_pylist()
        if row["metric"] == metric and row["task"] in tasks
    }


def _bounds(
    pairs: Sequence[tuple[Row, Row]], confidence: float
) -> tuple[float, float | None, float | None, float | None]:
    """How much better the second of each pair is: the mean, its one-sided bound, and the ends of its interval."""
    sign = 1 if pairs[0][0]["higher_is_better"] else -1
    champion, challenger = ([sign * row["value"] for row in rows] for rows in zip(*pairs, strict=True))
    weights = [([row["weight"] for row in rows]) for rows in zip(*pairs, strict=True)]
    interval = difference_interval((challenger, weights[1]), (champion, weights[0]))
    if {*map(abs, champion), *map(abs, challenger)} <= {0.0, 1.0} and {*weights[0], *weights[1]} == {1.0}:
        gained = sum(new > old for old, new in zip(champion, challenger, strict=True))
        lost = sum(new < old for old, new in zip(champion, challenger, strict=True))
        one_sided = 1 - (1 - CONFIDENCE) / 2
        low, high = (bound(gained, lost, len(pairs), one_sided) for bound in (lower_bound, upper_bound))
        least = lower_bound(gained, lost, len(pairs), confidence)
        return interval.mean, round(least, DIGITS), round(low, DIGITS), round(high, DIGITS)
    least = interval.lower_bound(confidence)
    return interval.mean, round(least, DIGITS) if math.isfinite(least) else None, *ends(interval)
