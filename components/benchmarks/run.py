"""The benchmarks of a checkpoint: of this run's by the stage `benchmark`, of a registered one by the gate."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.settings.pipeline import Settings

if TYPE_CHECKING:
    from components.benchmarks.harness import BenchmarkResult


def run_benchmarks(
    model_folder: Path, settings: Settings, arithmetic: AbstractContextManager[object]
) -> BenchmarkResult:
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


def stored_result(result: BenchmarkResult, checkpoint: str, settings: Settings) -> dict[str, Any]:
    """What metrics/benchmark/N.json holds; `checkpoint`: digest of the model."""
    return {
        "checkpoint": checkpoint,
        "harness": result.harness,
        "batch_size": settings.benchmark.batch_size,
        "limit": settings.benchmark.limit,
        "apply_chat_template": settings.benchmark.apply_chat_template,
        "tasks": {name: asdict(task) for name, task in result.tasks.items()},
        "groups": {name: asdict(group) for name, group in result.groups.items()},
    }
