"""Stages `evaluate_base` and `evaluate@N`: a model's losses on the holdout, record by record, and sample responses.

The metrics are means over the records, with 95 % intervals. Samples are generated for the first holdout
records by id, the same ones in every iteration.

    python -m components.evaluate --iteration base --holdout data/holdout.parquet --model models/base ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from components.core.files import write_json
from components.core.params import load_settings
from components.core.settings.pipeline import Settings
from components.core.stage import stage
from components.data import tables
from components.data.records import Record, read_records
from components.evaluation.holdout import evaluate_records, summarize
from components.evaluation.samples import Sample, generate_samples
from components.model.load import load_model
from components.provenance.digests import cached_digest
from components.provenance.statements import statement_of


def evaluate(
    folder: Path, holdout: Sequence[Record], settings: Settings, arithmetic: AbstractContextManager[object]
) -> tuple[pa.Table, list[Sample]]:
    """tables.EVALUATIONS and samples of the model in `folder`; `arithmetic` is entered while the model computes."""
    model, tokenizer = load_model(folder, settings.score.dtype)
    evaluations = evaluate_records(model, tokenizer, holdout, settings.score, f"evaluate {folder}", arithmetic)
    with arithmetic:
        samples = generate_samples(
            sorted(holdout, key=lambda record: record.id)[: settings.evaluate.samples],
            model,
            tokenizer,
            system=settings.score.system,
            template=settings.score.template,
            max_length=settings.score.max_length,
            sample_tokens=settings.evaluate.sample_tokens,
        )
    return evaluations, samples


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.evaluate", description="Evaluate a model on the holdout."
    )
    parser.add_argument("--iteration", required=True, help="base, or the iteration that made the model")
    for name in ("holdout", "model", "evaluations", "samples", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    name, key = ("evaluate_base", None) if options.iteration == "base" else ("evaluate", options.iteration)
    with stage(name, key) as running, statement_of(running.name):
        settings, holdout, digest = load_settings(), read_records(options.holdout), cached_digest(options.model)
        evaluations, samples = evaluate(options.model, holdout, settings, running.arithmetic)
        metrics = summarize(evaluations)
        tables.write(options.evaluations, evaluations, tables.EVALUATIONS)
        write_json(options.samples, {"checkpoint": digest, "samples": [asdict(sample) for sample in samples]})
        write_json(options.metrics, {"checkpoint": digest, **asdict(metrics)})
        print(
            f"evaluate {options.model}: {metrics.records} records, loss {metrics.loss}, "
            f"perplexity {metrics.perplexity}, mean complexity {metrics.mean_complexity}"
        )


if __name__ == "__main__":
    main()
