"""Stages `evaluate_base` and `evaluate@N`: compute a model's metrics on the holdout, and generate sample responses.

Samples are generated for the first holdout records by id, the same ones in every iteration.

    python -m components.evaluate --iteration base --holdout data/holdout.parquet --model models/base ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from components.core.files import write_json
from components.core.params import load_settings
from components.core.settings.pipeline import Settings
from components.core.stage import stage
from components.data.records import Record, read_records
from components.evaluation.holdout import HoldoutMetrics, measure
from components.evaluation.samples import Sample, generate_samples
from components.model.load import load_model
from components.provenance.digests import cached_digest
from components.provenance.statements import statement_of


def evaluate(
    folder: Path, holdout: Sequence[Record], settings: Settings, arithmetic: AbstractContextManager[object]
) -> tuple[HoldoutMetrics, list[Sample]]:
    """Metrics and samples of the model in `folder`; `arithmetic` is entered while the model computes.

    Raises UserError when no record of the holdout can be scored.
    """
    model, tokenizer = load_model(folder, settings.score.dtype)
    metrics = measure(model, tokenizer, holdout, settings.score, f"evaluate {folder}", arithmetic)
    with arithmetic:
        samples = generate_samples(
            sorted(holdout, key=lambda record: record.id)[: settings.evaluate.samples],
            model,
            tokenizer,
            system=settings.score.system,
            max_length=settings.score.max_length,
            sample_tokens=settings.evaluate.sample_tokens,
        )
    return metrics, samples


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.evaluate", description="Evaluate a model on the holdout."
    )
    parser.add_argument("--iteration", required=True, help="base, or the iteration that made the model")
    for name in ("holdout", "model", "samples", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    name, key = ("evaluate_base", None) if options.iteration == "base" else ("evaluate", options.iteration)
    with stage(name, key) as running, statement_of(running.name):
        settings, holdout, digest = load_settings(), read_records(options.holdout), cached_digest(options.model)
        metrics, samples = evaluate(options.model, holdout, settings, running.arithmetic)
        write_json(options.samples, {"checkpoint": digest, "samples": [asdict(sample) for sample in samples]})
        write_json(options.metrics, {"checkpoint": digest, **asdict(metrics)})
        print(
            f"evaluate {options.model}: {metrics.records} records, loss {metrics.loss}, "
            f"perplexity {metrics.perplexity}, mean complexity {metrics.mean_complexity}"
        )


if __name__ == "__main__":
    main()
