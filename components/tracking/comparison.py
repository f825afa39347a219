"""A comparison as a run of its own: what the arms reach as metrics, its files as artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from components.core.settings.pipeline import Settings
from components.provenance.digests import file_digest
from components.tracking.artifacts import log_file
from components.tracking.client import client, explain_unreachable
from components.tracking.runs import experiment_id, finish_pipeline_run, log_values, metric_entities, start_pipeline_run

COMPARISON = "iterit.comparison"  # tag of the run: the comparison's name
ANSWER = "iterit.answer"  # tag of the run: digest of its answer


def log_comparison(
    settings: Settings, name: str, answer: Path, values: Mapping[str, float], files: Sequence[Path]
) -> None:
    """Record the comparison with its `answer`, once; a run that a kill or an error left open is ended.

    Raises Unreachable, and UserError for what MLflow refuses.
    """
    digest = file_digest(answer)
    with explain_unreachable():
        for earlier in client().search_runs([experiment_id(settings.experiment)], f"tags.`{COMPARISON}` = '{name}'"):
            if earlier.info.status == "RUNNING":
                client().set_terminated(earlier.info.run_id, status="KILLED")
            elif earlier.info.status == "FINISHED" and earlier.data.tags.get(ANSWER) == digest:
                return
    run = start_pipeline_run(settings, f"compare {name}", {COMPARISON: name, ANSWER: digest})
    with explain_unreachable():
        log_values(run.run_id, metric_entities(values, None))
    for file in (answer, *files):
        log_file(run.run_id, file)
    finish_pipeline_run(run)
