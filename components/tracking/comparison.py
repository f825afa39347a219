"""A comparison as a run of its own: what the arms reach as metrics, its files as artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from components.core.settings.pipeline import Settings
from components.tracking.artifacts import log_file
from components.tracking.client import explain_unreachable
from components.tracking.runs import finish_pipeline_run, log_values, metric_entities, start_pipeline_run

COMPARISON = "iterit.comparison"  # tag of the run


def log_comparison(settings: Settings, name: str, values: Mapping[str, float], files: Sequence[Path]) -> None:
    """Record the comparison. Raises Unreachable, and UserError for what MLflow refuses."""
    run = start_pipeline_run(settings, f"compare {name}", {COMPARISON: name})
    with explain_unreachable():
        log_values(run.run_id, metric_entities(values, None))
    for file in files:
        log_file(run.run_id, file)
    finish_pipeline_run(run)
