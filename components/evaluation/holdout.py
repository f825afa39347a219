"""A model's metrics on the holdout: loss and perplexity of the reference responses, and their complexity.

    loss              mean over all response tokens of the holdout of -log p(y_t | x, y_<t)     nats per token
    perplexity        exp(loss)
    mean_complexity   mean of the records' complexity (components/scoring/ifd.py)

In loss and perplexity every token has the same weight, in complexity every record. Unscorable records count in none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from components.core.errors import UserError
from components.core.progress import progress
from components.core.settings.score import ScoreSettings
from components.data.records import Record
from components.scoring.ifd import UNTIMED, score_records


@dataclass(frozen=True, slots=True)
class HoldoutMetrics:
    """The content of metrics/evaluate/N.json, beside the checkpoint's digest."""

    records: int
    unscorable: int
    tokens: int
    loss: float
    perplexity: float
    mean_complexity: float
    misaligned_share: float


def measure(
    model: Any,
    tokenizer: Any,
    holdout: Sequence[Record],
    settings: ScoreSettings,
    what: str,
    arithmetic: AbstractContextManager[object] = UNTIMED,
) -> HoldoutMetrics:
    """The metrics of a loaded model. Raises UserError when no record of the holdout can be scored.

    `what` names the work in the progress line; `arithmetic` is entered while the model computes.
    """
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
    return summarize(scores)


def summarize(scores: pa.Table) -> HoldoutMetrics:
    """The metrics of tables.SCORES of the holdout. Raises UserError when no record of it can be scored."""
    scorable = [row for row in scores.to_pylist() if row["complexity"] is not None]
    if not scorable:
        raise UserError("data/holdout.parquet: no record of the holdout can be scored; see dedupe.holdout_share")
    tokens = sum(row["response_tokens"] for row in scorable)
    loss = math.fsum(row["nll_conditional"] * row["response_tokens"] for row in scorable) / tokens
    return HoldoutMetrics(
        records=scores.num_rows,
        unscorable=scores.num_rows - len(scorable),
        tokens=tokens,
        loss=round(loss, 6),
        perplexity=round(math.exp(loss), 6),
        mean_complexity=round(math.fsum(row["complexity"] for row in scorable) / len(scorable), 6),
        misaligned_share=round(sum(row["complexity"] >= 1 for row in scorable) / len(scorable), 6),
    )
