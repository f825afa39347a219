"""Stages `evaluate_base` and `evaluate@N`: compute a model's metrics on the holdout, and generate sample responses.

Samples are generated for the first holdout records by id, the same ones in every iteration.

    python -m components.evaluate --iteration base --holdout data/holdout.parquet --model models/base ...
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from components.core.files import write_json
from components.core.params import load_settings
from components.core.stage import stage
from components.data.records import read_records
from components.evaluation.holdout import measure
from components.evaluation.samples import generate_samples
from components.model.load import load_model
from components.provenance.digests import cached_digest
from components.provenance.statements import statement_of


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.evaluate", description="Evaluate a model on the holdout."
    )
    parser.add_argument("--iteration", required=True, help="base, or the iteration that made the model")
    parser.add_argument("--holdout", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    options = parser.parse_args()
    is_base = options.iteration == "base"
    name, key = ("evaluate_base", None) if is_base else ("evaluate", options.iteration)
    with stage(name, key) as running, statement_of(running.name):
        settings = load_settings()
        holdout = read_records(options.holdout)
        digest = cached_digest(options.model)
        model, tokenizer = load_model(options.model, settings.score.dtype)
        metrics = measure(model, tokenizer, holdout, settings.score, f"evaluate {options.model}", running.arithmetic)
        with running.arithmetic:
            samples = generate_samples(
                sorted(holdout, key=lambda record: record.id)[: settings.evaluate.samples],
                model,
                tokenizer,
                system=settings.score.system,
                max_length=settings.score.max_length,
                sample_tokens=settings.evaluate.sample_tokens,
            )
        write_json(options.samples, {"checkpoint": digest, "samples": [asdict(sample) for sample in samples]})
        write_json(options.metrics, {"checkpoint": digest, **asdict(metrics)})
        print(
            f"evaluate {options.model}: {metrics.records} records, loss {metrics.loss}, "
            f"perplexity {metrics.perplexity}, mean complexity {metrics.mean_complexity}"
        )


if __name__ == "__main__":
    main()
