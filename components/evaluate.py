"""Stages `evaluate_base` and `evaluate@N`: a model's losses on the holdout, record by record, and sample responses.

The metrics are means over the records, with 95 % intervals. Samples are generated for the first holdout
records by id, the same ones in every iteration; with evaluate.rouge answers are, too, and compared with the references
(components/evaluation/rouge.py). Examples of what the model is for (data/target.parquet, empty without a
source with target: true) are measured like the holdout, in a table and under a key of their own.

    python -m components.evaluate --iteration base --holdout data/holdout.parquet --targets data/target.parquet
        --model models/base ...
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.core.files import write_json
from components.core.params import load_settings
from components.core.progress import progress
from components.core.settings.pipeline import Settings
from components.core.stage import stage
from components.data import tables
from components.data.records import Record, open_records
from components.evaluation.holdout import NO_TARGET, evaluate_records, summarize
from components.evaluation.samples import Sample, generate_samples
from components.model.load import load_model
from components.provenance.digests import cached_digest
from components.provenance.statements import statement_of


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What a model makes of the holdout and of the targets."""

    holdout: pa.Table
    """tables.EVALUATIONS"""
    targets: pa.Table
    """tables.EVALUATIONS"""
    answers: pa.Table
    """tables.ANSWERS"""
    samples: list[Sample]


def evaluate(
    folder: Path,
    holdout: Sequence[Record],
    targets: Sequence[Record],
    settings: Settings,
    arithmetic: AbstractContextManager[object],
) -> Evaluated:
    """The evaluations of the model in `folder`; `arithmetic` is entered while the model computes."""
    model, tokenizer = load_model(folder, settings.score.dtype)
    evaluations = evaluate_records(model, tokenizer, holdout, settings.score, f"evaluate {folder}", arithmetic)
    of_targets = tables.EVALUATIONS.empty_table()
    if targets:
        what = f"evaluate {folder} on the targets"
        of_targets = evaluate_records(model, tokenizer, targets, settings.score, what, arithmetic)
    with arithmetic:
        samples = generate_samples(
            heapq.nsmallest(settings.evaluate.samples, holdout, key=lambda record: record.id),
            model,
            tokenizer,
            system=settings.score.system,
            template=settings.score.template,
            max_length=settings.score.max_length,
            sample_tokens=settings.evaluate.sample_tokens,
        )
    return Evaluated(evaluations, of_targets, answer(folder, model, tokenizer, holdout, settings, arithmetic), samples)


def answer(
    folder: Path,
    model: Any,
    tokenizer: Any,
    holdout: Sequence[Record],
    settings: Settings,
    arithmetic: AbstractContextManager[object],
) -> pa.Table:
    """tables.ANSWERS of the first evaluate.rouge records of the holdout; by default there are none."""
    if not settings.evaluate.rouge:
        return tables.ANSWERS.empty_table()
    from components.evaluation.rouge import answer_records, first_records

    records = first_records(holdout, settings.evaluate.rouge)
    with progress(total=len(records), unit="answers", what=f"answer {folder}") as advance, arithmetic:
        return answer_records(records, model, tokenizer, settings.score, settings.evaluate, advance)


def metrics_of(evaluated: Evaluated) -> dict[str, Any]:
    """The content of metrics/evaluate/N.json after the checkpoint's digest.

    Raises UserError when no record of the holdout, or none of the targets, can be scored.
    """
    metrics = asdict(summarize(evaluated.holdout))
    if evaluated.targets.num_rows:
        metrics["target"] = asdict(summarize(evaluated.targets, NO_TARGET))
    if evaluated.answers.num_rows:
        from components.evaluation.rouge import summarize_answers

        metrics["rouge"] = asdict(summarize_answers(evaluated.answers))
    return metrics


def describe(folder: Path, metrics: Mapping[str, Any]) -> Iterator[str]:
    """Lines for people."""
    yield (
        f"evaluate {folder}: {metrics['records']} records, loss {metrics['loss']}, "
        f"perplexity {metrics['perplexity']}, mean complexity {metrics['mean_complexity']}"
    )
    if target := metrics.get("target"):
        yield f"evaluate {folder}: {target['records']} examples of the target, loss {target['loss']}"
    if rouge := metrics.get("rouge"):
        yield f"evaluate {folder}: {rouge['records']} answers, ROUGE-L {rouge['rouge_l']}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.evaluate", description="Evaluate a model on the holdout."
    )
    parser.add_argument("--iteration", required=True, help="base, or the iteration that made the model")
    for name in ("holdout", "targets", "model", "evaluations", "target-evaluations", "answers", "samples", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    name, key = ("evaluate_base", None) if options.iteration == "base" else ("evaluate", options.iteration)
    with stage(name, key) as running, statement_of(running.name):
        settings, digest = load_settings(), cached_digest(options.model)
        holdout, targets = open_records(options.holdout), open_records(options.targets)
        evaluated = evaluate(options.model, holdout, targets, settings, running.arithmetic)
        metrics = metrics_of(evaluated)
        tables.write(options.evaluations, evaluated.holdout, tables.EVALUATIONS)
        tables.write(options.target_evaluations, evaluated.targets, tables.EVALUATIONS)
        tables.write(options.answers, evaluated.answers, tables.ANSWERS)
        write_json(options.samples, {"checkpoint": digest, "samples": [asdict(sample) for sample in evaluated.samples]})
        write_json(options.metrics, {"checkpoint": digest, **metrics})
        print(*describe(options.model, metrics), sep="\n")


if __name__ == "__main__":
    main()
