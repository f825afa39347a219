"""Stage `benchmark@N`: tasks of lm-evaluation-harness on a checkpoint; `benchmark@base` is that of the base model.

There is a stage for each checkpoint of benchmark.checkpoints, and none by default.

    python -m components.benchmark --checkpoint 1 --model models/1 --documents data/benchmarks/1.parquet
        --metrics metrics/benchmark/1.json
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.benchmarks.run import run_benchmarks, stored_result
from components.core.files import write_json
from components.core.params import load_settings
from components.core.stage import stage
from components.data import tables
from components.provenance.digests import cached_digest
from components.provenance.statements import statement_of

if TYPE_CHECKING:
    from components.benchmarks.harness import BenchmarkResult


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
        result = run_benchmarks(options.model, settings, running.arithmetic)
        tables.write(options.documents, result.documents, tables.BENCHMARKS)
        write_json(options.metrics, stored_result(result, cached_digest(options.model), settings))
        for name, line in describe(result).items():
            print(f"{running.name}: {name}: {line}")


if __name__ == "__main__":
    main()
