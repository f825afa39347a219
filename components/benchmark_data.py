"""Stage `benchmark_data`: the benchmarks with their data: what cannot be had is met here, before any training.

Every task of benchmark.tasks is loaded with its data, from the hub's cache or the hub. Its texts are compared with the
training records (stage `contamination`; `dedupe` where contamination.exclude is set). Without tasks the table is empty.
A figure of gate.benchmarks that no task has is met here, too.

    python -m components.benchmark_data --texts data/benchmarks/texts.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path

from components.core.params import load_settings
from components.core.stage import stage
from components.data import tables
from components.provenance.statements import statement_of


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.benchmark_data", description="Load the benchmarks' tasks and their data."
    )
    parser.add_argument("--texts", type=Path, required=True)
    options = parser.parse_args()
    with stage("benchmark_data", hub=True) as running, statement_of(running.name):
        settings = load_settings()
        texts = tables.BENCHMARK_TEXTS.empty_table()
        if settings.benchmark.tasks:
            # the harness imports PyTorch
            from components.benchmarks.figures import check_figures
            from components.benchmarks.tasks import load_tasks
            from components.benchmarks.texts import task_texts

            loaded = load_tasks(settings.benchmark)
            check_figures(loaded, settings.gate.benchmarks)
            texts = task_texts(loaded)
            print(f"{running.name}: {len(loaded.tasks)} tasks, {texts.num_rows:,} documents")
        else:
            print(f"{running.name}: no task is named")
        tables.write(options.texts, texts, tables.BENCHMARK_TEXTS)


if __name__ == "__main__":
    main()
