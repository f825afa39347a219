"""The retraining flow: the method as a list of stages; DVC runs each stage only if something it depends on has changed.

    iterit run                       from the project's folder
    python -m flows.retrain          the same

dvc.yaml describes the pipeline; the flow drives it and shows it in Prefect: a task run per stage, a table per
iteration, a link to the MLflow run.
"""

from __future__ import annotations

from components.core.errors import UserError, exit_on_user_error
from flows.foreground import prepare_run, run_flow

if __name__ == "__main__":  # before Prefect is imported
    with exit_on_user_error():
        prepare_run()

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from httpx import TransportError
from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from components.core.params import load_settings
from components.core.settings.pipeline import Settings
from components.tracking.runs import RUN_VARIABLE
from flows.interrupted import RunningNote, begin_run, note_run
from flows.page import PAGE, publish_page
from flows.recording import Logger, recording
from flows.resolution import say_what_the_holdout_can_show
from flows.seal import seal
from flows.server import ServerLostError, leave_without_server, mute_losses, require_server
from flows.stages import data_stages, iteration_stages
from flows.summary import read_rows
from flows.task import StageError, dvc_worker, run_stage
from flows.workspace import WorkspaceBusyError, check_workspace, workspace_lock


@flow(name="retrain")
def retrain(commit: bool = True) -> State[Any]:
    """Retrain with params.yaml as it is; without `commit` nothing is committed, whatever seal.commit says.

    The state's name is Retrained, Unchanged, Busy or Failed; the result of a failed state is its UserError or
    StageError.
    """
    mute_losses()
    try:
        with workspace_lock():
            unfinished = begin_run(flow_run.id, get_run_logger())
            settings = load_settings()
            check_workspace(settings)
            sealing = settings.seal if commit else settings.seal.model_copy(update={"commit": False})
            try:
                state = _retrain(settings.model_copy(update={"seal": sealing}), unfinished)
                require_server()  # it is told of the state next
                return state
            except (ServerLostError, TransportError):
                leave_without_server()  # the next run ends this one in Prefect
            finally:
                note_run(RunningNote(flow_run.id, unfinished=tuple(unfinished)))
    except WorkspaceBusyError as busy:
        get_run_logger().warning("%s; this one ends", busy)
        return Completed(name="Busy", message=str(busy), data="busy")
    except UserError as error:
        return Failed(message=str(error), data=error)
    except StageError as error:
        return Failed(message="\n".join(error.lines), data=error)


def _retrain(settings: Settings, unfinished: list[str]) -> State[str]:
    logger = get_run_logger()
    with dvc_worker() as ask:
        status = ask({"do": "status"}, logger.info)
        if status.error is not None:
            raise StageError("dvc", status.exit_code, [], status.error)
        if not status.changed:
            logger.info("nothing new: data, parameters and code are those of the last run; nothing to retrain")
            seal(settings.seal, flow_run.id, logger)  # a run that was killed before its end
            if not PAGE.is_file():
                publish_page(settings, logger)
            return Completed(name="Unchanged", data="unchanged")
        with recording(settings, logger, unfinished) as records:
            if records.run is not None:
                note_run(RunningNote(flow_run.id, records.run.run_id, tuple(unfinished)))
                ask({"do": "environment", RUN_VARIABLE: records.run.run_id}, logger.info)
                create_link_artifact(records.run.url, "MLflow run", key="mlflow-run")

            def run(stage: str) -> None:
                require_server()
                with records.logging_steps(stage):
                    run_stage(stage, ask, return_state=True).result()  # raises StageError
                if stage != "register":  # it records itself
                    records.record(stage)

            _run_stages(settings, run, logger)
            records.wait()  # `register` writes to the same MLflow run
            run("register")
            seal(settings.seal, flow_run.id, logger)
            publish_page(settings, logger)
    return Completed(name="Retrained", data="retrained")


def _run_stages(settings: Settings, run: Callable[[str], None], logger: Logger) -> None:
    """Run every stage before `register`: the data, then the iterations of the method, then the report."""
    foreseen = False
    for stage in data_stages(settings):
        run(stage)
        if stage == "dedupe":
            foreseen = say_what_the_holdout_can_show(settings, logger)
    for iteration in settings.iterations:
        for stage in iteration_stages(settings, iteration):
            run(stage)
        foreseen = foreseen or say_what_the_holdout_can_show(settings, logger)
        _show_iterations(settings, iteration)
    run("contamination")
    run("report")


def _show_iterations(settings: Settings, last: str) -> None:
    """Show the iterations up to `last` as a table in Prefect, which keeps one table per iteration."""
    require_server()
    iterations = {key: value for key, value in settings.iterations.items() if int(key) <= int(last)}
    rows = [asdict(row) for row in read_rows(settings.model_copy(update={"iterations": iterations}))]
    create_table_artifact(rows, key=f"iteration-{last}", description=f"Up to iteration {last}")


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(run_flow(retrain))
