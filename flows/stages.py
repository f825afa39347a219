"""The method as a list of stages, by DVC's names: the data, then the iterations."""

from __future__ import annotations

from collections.abc import Iterator

from components.core.settings.pipeline import Settings


def data_stages(settings: Settings) -> Iterator[str]:
    """What comes before the first iteration."""
    yield "benchmark_data"  # a task whose data cannot be had ends the run here
    yield "base_model"
    for source in settings.ingest.files:
        yield f"manifest@{source}"
    yield "ingest"
    yield "dedupe"
    yield "evaluate_base"
    if "base" in settings.benchmark.checkpoints:
        yield "benchmark@base"


def iteration_stages(settings: Settings, iteration: str) -> Iterator[str]:
    """Choose, train, and measure the checkpoint."""
    yield f"score@{iteration}"
    yield f"select@{iteration}"
    yield f"finetune@{iteration}"
    yield f"evaluate@{iteration}"
    if iteration in settings.benchmark.checkpoints:
        yield f"benchmark@{iteration}"
