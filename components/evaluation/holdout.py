"""A model's metrics on the holdout, or on targets: loss and perplexity of the references, and their complexity.

    loss              mean over all response tokens of the holdout of -log p(y_t | x, y_<t)     nats per token
    perplexity        exp(loss)
    mean_complexity   mean of the records' complexity (components/scoring/ifd.py)

In loss and perplexity every token has the same weight, in complexity every record. Unscorable records count in none.
The 95 % intervals are over records (components/evaluation/statistics.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from components.core.errors import UserError, printable
from components.core.progress import progress
from components.core.settings.score import ScoreSettings
from components.data import tables
from components.data.records import Record
from components.evaluation.statistics import Interval, weighted_interval
from components.model.chat import pin_date
from components.scoring.ifd import UNTIMED, explain_unscorable, score_records

CONFIDENCE = 0.95  # of the intervals in metrics, two-sided
DIGITS = 6

NO_HOLDOUT = "data/holdout.parquet: no record of the holdout can be scored; see dedupe.holdout_share"
NO_TARGET = "data/target.parquet: no example of the target can be scored; see score.max_length and score.template"

Row = Mapping[str, Any]  # of tables.EVALUATIONS


@dataclass(frozen=True, slots=True)
class SourceMetrics:
    """The loss on the records of one source, in nats per token."""

    records: int
    """Scorable ones."""
    loss: float
    loss_low: float | None
    """Ends of the 95 % interval; None for a single record, which has none."""
    loss_high: float | None


@dataclass(frozen=True, slots=True)
class HoldoutMetrics:
    """The content of metrics/evaluate/N.json, beside the checkpoint's digest; intervals as in SourceMetrics."""

    records: int
    unscorable: int
    tokens: int
    loss: float
    loss_low: float | None
    loss_high: float | None
    perplexity: float
    mean_complexity: float
    mean_complexity_low: float | None
    mean_complexity_high: float | None
    misaligned_share: float
    sources: Mapping[str, SourceMetrics]
    """By name, sorted; a source without a scorable record is missing."""


def evaluate_records(
    model: Any,
    tokenizer: Any,
    holdout: Sequence[Record],
    settings: ScoreSettings,
    what: str,
    arithmetic: AbstractContextManager[object] = UNTIMED,
) -> pa.Table:
    """tables.EVALUATIONS of a loaded model, in the order of `holdout`.

    `what` names the work in the progress line; `arithmetic` is entered while the model computes. Raises UserError, with
    the reasons, when no record can be scored.
    """
    pin_date(tokenizer, settings.template_date)
    with progress(total=len(holdout), unit="records", what=what) as advance:
        scores = score_records(
            holdout,
            model,
            tokenizer,
            max_length=settings.max_length,
            batch_tokens=settings.batch_tokens,
            system=settings.system,
            template=settings.template,
            advance=advance,
            arithmetic=arithmetic,
        )
    reasons = explain_unscorable(scores)
    if reasons and scores["complexity"].null_count == scores.num_rows:
        raise UserError(f"data/holdout.parquet: no record of the holdout can be scored: {'; '.join(reasons)}")
    for reason in reasons:
        print(f"{what}: {printable(reason)}", flush=True)
    return evaluation_table(holdout, scores)


def evaluation_table(holdout: Sequence[Record], scores: pa.Table) -> pa.Table:
    """tables.EVALUATIONS from tables.SCORES of the same records."""
    sources = pa.array([record.source for record in holdout], pa.string())
    named = scores.rename_columns(["tokens" if name == "response_tokens" else name for name in scores.column_names])
    return named.append_column("source", sources).select(tables.EVALUATIONS.names).cast(tables.EVALUATIONS)


def summarize(evaluations: pa.Table, nothing: str = NO_HOLDOUT) -> HoldoutMetrics:
    """The metrics of tables.EVALUATIONS. Raises UserError, with the text `nothing`, when no record can be scored."""
    rows = scorable_rows(evaluations)
    if not rows:
        raise UserError(nothing)
    loss = loss_interval(rows)
    complexity = weighted_interval([row["complexity"] for row in rows], [1.0] * len(rows))
    loss_low, loss_high = ends(loss)
    complexity_low, complexity_high = ends(complexity)
    return HoldoutMetrics(
        records=evaluations.num_rows,
        unscorable=evaluations.num_rows - len(rows),
        tokens=sum(row["tokens"] for row in rows),
        loss=round(loss.mean, DIGITS),
        loss_low=loss_low,
        loss_high=loss_high,
        perplexity=round(math.exp(loss.mean), DIGITS),
        mean_complexity=round(complexity.mean, DIGITS),
        mean_complexity_low=complexity_low,
        mean_complexity_high=complexity_high,
        misaligned_share=round(sum(row["complexity"] >= 1 for row in rows) / len(rows), DIGITS),
        sources=_summarize_sources(rows),
    )


def scorable_rows(evaluations: pa.Table) -> list[Row]:
    """The rows of the records that the model could score."""
    return [row for row in evaluations.to_pylist() if row["complexity"] is not None]


def loss_interval(rows: Sequence[Row]) -> Interval:
    """The loss over the tokens of scorable rows."""
    return weighted_interval([row["nll_conditional"] for row in rows], [row["tokens"] for row in rows])


def ends(interval: Interval) -> tuple[float | None, float | None]:
    """Both ends of the interval at CONFIDENCE, rounded; None for a single record."""
    half = interval.half_width(CONFIDENCE)
    if not math.isfinite(half):
        return None, None
    return round(interval.mean - half, DIGITS), round(interval.mean + half, DIGITS)


def _summarize_sources(rows: Sequence[Row]) -> dict[str, SourceMetrics]:
    metrics = {}
    for source in sorted({row["source"] for row in rows}):
        of_source = [row for row in rows if row["source"] == source]
        loss = loss_interval(of_source)
        metrics[source] = SourceMetrics(len(of_source), round(loss.mean, DIGITS), *ends(loss))
    return metrics
