"""The parent run of a pipeline run: its start and end, and the metric series over all iterations and steps."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.errors import UserError
from components.core.files import flatten
from components.core.params import read_params
from components.core.paths import PARAMS, project_folder
from components.core.settings.pipeline import Settings
from components.tracking.client import LOCAL_PAGE, client, explain_unreachable, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

RUN_VARIABLE = "ITERIT_PIPELINE_RUN"  # environment variable: id of the parent run that the stage `register` completes
PARENT = "mlflow.parentRunId"  # tag of a child run
MAX_METRICS, MAX_PARAMS, MAX_PARAM_LENGTH = 1000, 100, 6000  # limits of one request to MLflow's REST interface


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """The parent run of a pipeline run."""

    experiment_id: str
    run_id: str
    url: str
    """MLflow's page of the run."""
    started: float
    """Seconds since the epoch. A stage that ended later ran in this run; the others came from DVC's cache."""


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What was measured in one optimizer step."""

    step: int
    """Number over all iterations, from 1."""
    values: Mapping[str, float]
    """By MLflow's name of the metric: `step/loss`, ..."""


def start_pipeline_run(
    settings: Settings,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    *,
    started: float | None = None,
) -> PipelineRun:
    """Create the parent run and log all parameters.

    `name` defaults to DVC_EXP_NAME, then to a name of MLflow's choice; `started`, in seconds since the epoch, to now.
    Raises UserError when the experiment was deleted in MLflow.
    """
    start_time = time.time() if started is None else started
    with explain_unreachable():
        run = client().create_run(
            experiment_id(settings.experiment),
            start_time=int(start_time * 1000),
            run_name=name or os.environ.get("DVC_EXP_NAME"),
            tags={"mlflow.source.name": "iterit", **_git_commit_tag(), **(tags or {})},
        )
        pipeline_run = _pipeline_run(run)
        log_values(pipeline_run.run_id, params=flatten(read_params()))
    return pipeline_run


def open_pipeline_run(run_id: str) -> PipelineRun:
    """The parent run that another process has started."""
    with explain_unreachable():
        return _pipeline_run(client().get_run(run_id))


def finish_pipeline_run(run: PipelineRun, status: str = "FINISHED") -> None:
    """End the run; `status` is FINISHED, FAILED or KILLED."""
    with explain_unreachable():
        client().set_terminated(run.run_id, status=status)


def kill_pipeline_run(run_id: str) -> None:
    """End as KILLED what a killed process has left RUNNING: the parent run and its child runs, if MLflow has them."""
    from mlflow.exceptions import MlflowException

    with explain_unreachable():
        try:
            experiment = client().get_run(run_id).info.experiment_id
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return
            raise
        children = client().search_runs([experiment], f"tags.`{PARENT}` = '{run_id}'")
        for run in (*children, client().get_run(run_id)):
            if run.info.status == "RUNNING":
                client().set_terminated(run.info.run_id, status="KILLED")


def log_steps(run: PipelineRun, steps: Sequence[StepMetrics]) -> None:
    """Add optimizer steps to the series of the parent run, except those it has already.

    Called while a stage trains, and once more when it has ended.
    """
    if not steps:
        return
    with explain_unreachable():
        logged = {metric.step for metric in client().get_metric_history(run.run_id, "step/loss")}
        new = [step for step in steps if step.step not in logged]
        log_values(run.run_id, [metric for step in new for metric in metric_entities(step.values, step.step)])


def metric_entities(values: Mapping[str, float], step: int | None) -> list[Metric]:
    """The values as MLflow's metrics of one step; 0 where there is none."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(key, value, now, step or 0) for key, value in values.items()]


def log_values(run_id: str, metrics: Sequence[Metric] = (), params: Mapping[str, Any] | None = None) -> None:
    """Log metrics and parameters in as many requests as MLflow's limits ask for."""
    from mlflow.entities import Param

    entities = [Param(key, str(value)[:MAX_PARAM_LENGTH]) for key, value in (params or {}).items()]
    for start in range(0, len(metrics), MAX_METRICS):
        client().log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])
    for start in range(0, len(entities), MAX_PARAMS):
        client().log_batch(run_id, params=entities[start : start + MAX_PARAMS])


def experiment_id(name: str) -> str:
    """MLflow's id of the experiment, which is made if there is none. Raises UserError when it was deleted."""
    experiment = client().get_experiment_by_name(name)
    if experiment is None:
        # with this kind MLflow's page opens on training runs and models, not on traces of agents
        tags = {"mlflow.experimentKind": "custom_model_development"}
        folder = project_folder()
        artifacts = None if folder == Path() else str(folder / "mlruns")  # MLflow's default is the current folder
        return str(client().create_experiment(name, artifact_location=artifacts, tags=tags))
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"{PARAMS}: experiment: {name}: deleted in MLflow; restore it "
            f"(`mlflow experiments restore --experiment-id {experiment.experiment_id}`) or choose another name"
        )
    return str(experiment.experiment_id)


def _pipeline_run(run: Run) -> PipelineRun:
    info = run.info
    page = tracking_uri() if tracking_uri().startswith("http") else LOCAL_PAGE
    url = f"{page.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
    return PipelineRun(info.experiment_id, info.run_id, url, info.start_time / 1000)


def _git_commit_tag() -> dict[str, str]:
    """MLflow's tag for the version of the code; empty outside a git repository and before its first commit."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {"mlflow.source.git.commit": git.stdout.strip()} if git.returncode == 0 else {}
