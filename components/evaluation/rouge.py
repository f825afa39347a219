"""ROUGE-L of answers against the reference responses (Lin 2004, section 3), by the library rouge-score.

    precision = LCS / words of the answer      recall = LCS / words of the reference
    rouge_l   = 2 precision recall / (precision + recall)

LCS is the length of the longest common subsequence of words: runs of the letters a to z and of digits, in lower case
and stemmed (Porter). A reference without any such word, in another script for example, has no ROUGE-L. The interval is
over records (components/evaluation/statistics.py).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from components.core.errors import UserError
from components.core.paths import PARAMS
from components.core.settings.evaluate import EvaluateSettings
from components.core.settings.score import ScoreSettings
from components.data import tables
from components.data.records import Record
from components.evaluation.holdout import DIGITS, ends
from components.evaluation.samples import Sample, generate_samples
from components.evaluation.statistics import weighted_interval
from components.model.chat import encode_prompts, pin_date

AT_ONCE = 16  # prompts of similar length that are answered together


@dataclass(frozen=True, slots=True)
class RougeMetrics:
    """The content of `rouge` in metrics/evaluate/N.json; the ends are those of the 95 % interval."""

    records: int
    unscorable: int
    """Records whose reference has no word, or whose prompt the chat template refuses."""
    rouge_l: float
    rouge_l_low: float | None
    """None for a single record, which has no interval."""
    rouge_l_high: float | None


def first_records(holdout: Sequence[Record], count: int) -> list[Record]:
    """The first `count` records by id: the same ones for every model, and of all sources alike."""
    return heapq.nsmallest(count, holdout, key=lambda record: record.id)


def answer_records(
    records: Sequence[Record],
    model: Any,
    tokenizer: Any,
    score: ScoreSettings,
    settings: EvaluateSettings,
    advance: Callable[[int], object] = lambda _: None,
) -> pa.Table:
    """tables.ANSWERS of a loaded model, in the order of `records`: greedy answers of rouge_tokens tokens at most.

    `advance` is called with the number of records just finished.
    """
    pin_date(tokenizer, score.template_date)
    prompts = encode_prompts(records, tokenizer, system=score.system, template=score.template)
    lengths = {record.id: len(ids or ()) for record, ids in zip(records, prompts, strict=True)}
    by_length = sorted(records, key=lambda record: (-lengths[record.id], record.id))
    answers: dict[str, Sample] = {}
    for start in range(0, len(by_length), AT_ONCE):
        batch = by_length[start : start + AT_ONCE]
        samples = generate_samples(
            batch,
            model,
            tokenizer,
            system=score.system,
            template=score.template,
            max_length=score.max_length,
            sample_tokens=settings.rouge_tokens,
        )
        answers |= {sample.id: sample for sample in samples}
        advance(len(batch))
    texts = [answers[record.id].generated if record.id in answers else None for record in records]
    return pa.table(
        {
            "id": [record.id for record in records],
            "source": [record.source for record in records],
            "answer": texts,
            "rouge_l": rouge_l([record.response for record in records], texts),
        },
        schema=tables.ANSWERS,
    )


def rouge_l(references: Sequence[str], answers: Sequence[str | None]) -> list[float | None]:
    """ROUGE-L of each answer, from 0 to 1; None without an answer, and for a reference without a word."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer(use_stemmer=True)
    scorer = RougeScorer(["rougeL"], tokenizer=tokenizer)
    return [
        None
        if answer is None or not tokenizer.tokenize(reference)
        else float(scorer.score(reference, answer)["rougeL"].fmeasure)
        for reference, answer in zip(references, answers, strict=True)
    ]


def summarize_answers(answers: pa.Table) -> RougeMetrics:
    """The metrics of tables.ANSWERS. Raises UserError when no answer has a ROUGE-L."""
    values = answers["rouge_l"].drop_null().to_pylist()
    if not values:
        raise UserError(
            f"{PARAMS}: evaluate.rouge: {answers.num_rows} responses of the holdout have no word of the letters a to "
            "z, so there is no ROUGE-L of them; set it to 0"
        )
    interval = weighted_interval(values, [1.0] * len(values))
    return RougeMetrics(answers.num_rows, answers.num_rows - len(values), round(interval.mean, DIGITS), *ends(interval))
