"""Stage `benchmark@N`: tasks of lm-evaluation-harness on a checkpoint; `benchmark@base` is that of the base model.

There is a stage for each checkpoint of benchmark.checkpoints, and none by default.

    python -m components.benchmark --checkpoint 1 --model models/1 --documents data/benchmarks/1.parquet
        --metrics metrics/benchmark/1.json
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.files import write_json
from components.core.params import load_settings
from components.core.settings.pipeline import Settings
from components.core.stage import stage
from components.data import tables
from components.provenance.digests import cached_digest
from components.provenance.statements import statement_of

if TYPE_CHECKING:
    from components.benchmarks.harness import BenchmarkResult


def benchmark(model_folder: Path, settings: Settings, arithmetic: AbstractContextManager[object]) -> BenchmarkResult:
    """The named tasks on the model in the folder; `arithmetic` is entered while it computes.

    Raises UserError as load_tasks does.
    """
    # both import PyTorch
    from components.benchmarks.harness import run_tasks
    from components.benchmarks.tasks import load_tasks
    from components.model.chat import pin_date
    from components.model.load import load_model

    if settings.benchmark.allow_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # what the metric of tasks that run code asks for
    loaded = load_tasks(settings.benchmark)
    model, tokenizer = load_model(model_folder, settings.score.dtype)
    pin_date(tokenizer, settings.score.template_date)
    return run_tasks(model, tokenizer, loaded, settings.benchmark, settings.score.system, arithmetic)


def describe(result: BenchmarkResult) -> Mapping[str, str]:
    """For each task its metrics, with their standard errors, as a line for people."""
    metrics = {name: task.metrics for name, task in result.tasks.items()}
    metrics |= {name: group.metrics for name, group in result.groups.items()}
    return {name: ", ".join(f"{metric} {figure}" for metric, figure in of.items()) for name, of in metrics.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m components.benchmark", description="Run benchmarks on a model.")
    parser.add_argument("--checkpoint", required=True, help="base, or the iteration that made the model")
    for name in ("model", "documents", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    with stage("benchmark", options.checkpoint) as running, statement_of(running.name):
        settings = load_settings()
        result = benchmark(options.model, settings, running.arithmetic)
        tables.write(options.documents, result.documents, tables.BENCHMARKS)
        write_json(
            options.metrics,
            {
                "checkpoint": cached_digest(options.model),
                "harness": result.harness,
                "batch_size": settings.benchmark.batch_size,
                "limit": settings.benchmark.limit,
                "apply_chat_template": settings.benchmark.apply_chat_template,
                "tasks": {name: asdict(task) for name, task in result.tasks.items()},
                "groups": {name: asdict(group) for name, group in result.groups.items()},
            },
        )
        for name, line in describe(result).items():
            print(f"{running.name}: {name}: {line}")


if __name__ == "__main__":
    main()
