"""MLflow lives here and nowhere else: one parent run a pipeline run, one child run a stage, written from files.

Stages write files and know nothing of MLflow. Afterwards one process reads what they wrote and logs it: the flow after
each stage, or the `register` stage for all of them under a bare `dvc repro`. Both take the same path, so the records
are the same, and a tracking server that is away costs no training: `dvc repro register` records everything later.

What a stage used and wrote is read from dvc.lock: parameters, dependencies and outputs with their hashes.

    parent run      all parameters; per iteration `evaluate/perplexity`, `score/mean_complexity`, ... (step = iteration,
                    0 is the base model); per optimizer step `step/loss`, `step/learning_rate`, `step/gradient_norm`
    child `score@2` its parameters, its metrics, its tables as artifacts, the records it read as dataset inputs

Every function here may raise Unreachable, when the tracking server does not answer.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.core.errors import UserError
from components.core.files import flatten
from components.core.params import read_params
from components.core.paths import PARAMS
from components.core.settings.pipeline import Settings
from components.tracking.client import LOCAL_PAGE, answering, client, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run


PARENT = "mlflow.parentRunId"


MOST_METRICS, MOST_PARAMS, LONGEST_PARAM = 1000, 100, 6000  # of one request, by MLflow's REST interface


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """The parent run. A stage whose work ended after `started` ran in it; the others came from the cache."""

    experiment_id: str
    run_id: str
    url: str
    started: float  # seconds since the epoch


def start_pipeline_run(
    settings: Settings, name: str | None = None, tags: dict[str, str] | None = None, *, started: float | None = None
) -> PipelineRun:
    """Make the parent run, with all parameters. `name` defaults to DVC_EXP_NAME, then to a name of MLflow's choice."""
    begun = time.time() if started is None else started
    with answering():
        experiment_id = _experiment(settings.experiment)
        run = client().create_run(
            experiment_id,
            start_time=int(begun * 1000),
            run_name=name or os.environ.get("DVC_EXP_NAME"),
            tags={"mlflow.source.name": "iterit", **_git_commit(), **(tags or {})},
        )
        pipeline_run = _pipeline_run(run)
        log_values(pipeline_run.run_id, params=flatten(read_params()))
    return pipeline_run


def open_pipeline_run(run_id: str) -> PipelineRun:
    """The parent run that another process has started."""
    with answering():
        return _pipeline_run(client().get_run(run_id))


def finish_pipeline_run(run: PipelineRun, status: str = "FINISHED") -> None:
    """`status` is FINISHED, FAILED or KILLED."""
    with answering():
        client().set_terminated(run.run_id, status=status)


def _experiment(name: str) -> str:
    found = client().get_experiment_by_name(name)
    if found is None:
        # the page then opens on training runs and models, not on traces of agents
        return str(client().create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"}))
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"{PARAMS}: experiment: {name}: deleted in MLflow; restore it "
            f"(`mlflow experiments restore --experiment-id {found.experiment_id}`) or choose another name"
        )
    return str(found.experiment_id)


def _pipeline_run(run: Run) -> PipelineRun:
    info = run.info
    page = tracking_uri() if tracking_uri().startswith("http") else LOCAL_PAGE
    url = f"{page.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
    return PipelineRun(info.experiment_id, info.run_id, url, info.start_time / 1000)


def _git_commit() -> dict[str, str]:
    """MLflow's tag for the code's version, where this is a git repository with a commit."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {"mlflow.source.git.commit": done.stdout.strip()} if done.returncode == 0 else {}


def metric_entities(values: dict[str, float], step: int | None) -> list[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(key, value, now, step or 0) for key, value in values.items()]


def log_values(run_id: str, metrics: Sequence[Metric] = (), params: dict[str, Any] | None = None) -> None:
    """Log in portions that MLflow's REST interface accepts."""
    from mlflow.entities import Param

    entities = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in (params or {}).items()]
    for start in range(0, len(metrics), MOST_METRICS):
        client().log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])
    for start in range(0, len(entities), MOST_PARAMS):
        client().log_batch(run_id, params=entities[start : start + MOST_PARAMS])


def log_steps(run: PipelineRun, steps: Sequence[tuple[int, dict[str, float]]]) -> None:
    """Add optimizer steps to the series of the parent run; those that it has already are left out.

    Called while a stage trains, and once more when it has ended.
    """
    with answering():
        have = {metric.step for metric in client().get_metric_history(run.run_id, "step/loss")} if steps else set()
        log_values(run.run_id, [metric for at, row in steps if at not in have for metric in metric_entities(row, at)])
