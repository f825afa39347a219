"""The retraining flow: the method as a list of stages; DVC runs each only if something that it depends on has changed.

    iterit run                       from the project's folder
    python -m flows.retrain          the same

dvc.yaml describes the pipeline; this drives it and shows it: a task run per stage, a table per iteration, a link to the
MLflow run.
"""

from __future__ import annotations

from components.core.errors import UserError, exit_on_user_error
from flows.foreground import prepare_run, run_flow

if __name__ == "__main__":  # before Prefect is imported
    with exit_on_user_error():
        prepare_run()

import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from components.core.params import load_settings
from components.core.settings.pipeline import Settings
from components.report import iteration_rows
from flows.recording import recording
from flows.seal import seal
from flows.task import StageError, dvc_worker, run_stage
from flows.workspace import WorkspaceBusyError, check_workspace, workspace_lock

METRICS, ITERATIONS = Path("metrics"), Path("data/iterations")


@flow(name="retrain")
def retrain(commit: bool = True) -> State[Any]:
    """Retrain with params.yaml as it is; without `commit` the results' commit is left to the user.

    The state's name is Retrained, Unchanged, Busy or Failed; the result of a failed one is its UserError or StageError.
    """
    try:
        settings = load_settings()
        check_workspace(settings)
        with workspace_lock():
            sealing = settings.seal if commit else settings.seal.model_copy(update={"commit": False})
            return _retrain(settings.model_copy(update={"seal": sealing}))
    except WorkspaceBusyError as busy:
        get_run_logger().warning("%s; this one ends", busy)
        return Completed(name="Busy", message=str(busy), data="busy")
    except UserError as error:
        return Failed(message=str(error), data=error)
    except StageError as error:
        return Failed(message="\n".join(error.lines), data=error)


def _retrain(settings: Settings) -> State[str]:
    logger = get_run_logger()
    with dvc_worker() as ask:
        status = ask({"do": "status"}, logger.info)
        if "error" in status:
            raise StageError("dvc", status["exit_code"], [], status["error"])
        if not status["changed"]:
            logger.info("nothing new: data, parameters and code are those of the last run; nothing to retrain")
            return Completed(name="Unchanged", data="unchanged")
        with recording(settings, logger) as record:
            if record.run is not None:
                ask({"do": "environment", "ITERIT_PIPELINE_RUN": record.run.run_id}, logger.info)
                create_link_artifact(record.run.url, "MLflow run", key="mlflow-run")

            def step(stage: str) -> None:
                with record.watching(stage):
                    run_stage(stage, ask, return_state=True).result()  # raises StageError
                if stage != "register":  # it completes the record itself
                    record.record(stage)

            step("base_model")
            for source in settings.ingest.files:
                step(f"manifest@{source}")
            step("ingest")
            step("dedupe")
            step("evaluate_base")
            for iteration in settings.iterations:
                step(f"score@{iteration}")
                step(f"select@{iteration}")
                step(f"finetune@{iteration}")
                step(f"evaluate@{iteration}")
                _show_iteration(settings, iteration)
            step("report")
            record.wait()  # two must not write the record at once
            step("register")
            seal(settings.seal, flow_run.id, logger)
    return Completed(name="Retrained", data="retrained")


def _show_iteration(settings: Settings, iteration: str) -> None:
    """Show the iterations up to this one as a table; Prefect keeps its versions under one key."""
    until = {key: value for key, value in settings.iterations.items() if int(key) <= int(iteration)}
    rows = iteration_rows(settings.model_copy(update={"iterations": until}), METRICS, ITERATIONS)
    create_table_artifact(rows, key=f"iteration-{iteration}", description=f"Up to iteration {iteration}")


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(run_flow(retrain))
