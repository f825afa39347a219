"""Ends what a killed run leaves in Prefect and MLflow: runs that look as if they were still going on.

A run notes down its ids as soon as it holds the folder's lock, and the note stays: whether its run has ended is what
Prefect and MLflow say when the next one begins. So there is no moment at which a kill leaves a run that nobody ends.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from components.core.errors import Unreachable, UserError
from components.core.files import read_json, write_json
from components.core.paths import SCRATCH
from components.tracking.runs import kill_pipeline_run

if TYPE_CHECKING:
    from flows.recording import Logger

NOTE = SCRATCH / "running.json"


@dataclass(frozen=True, slots=True)
class RunningNote:
    """The newest run in this folder, and what runs before it may have left open."""

    flow_run: str | None = None
    """Prefect's id."""
    mlflow_run: str | None = None
    """None before it begins, and when it has ended."""
    unfinished: tuple[str, ...] = ()
    """MLflow runs of killed runs that MLflow could not be asked to end yet."""
    earlier: tuple[str, ...] = ()
    """Flow runs before this one that Prefect has not been asked about yet."""


def note_run(note: RunningNote, file: Path = NOTE) -> None:
    """Say which run is at work, or was the last."""
    write_json(file, asdict(note))


def begin_run(flow_run: str, logger: Logger, file: Path = NOTE) -> list[str]:
    """Note down the flow run, and end the runs that a kill has left running: Crashed in Prefect, KILLED in MLflow.

    `file` holds the note: runs that may be at work at the same time have one each. Returns the MLflow runs that could
    not be ended because the server does not answer: a warning, and the next run tries again.
    """
    before = RunningNote(**read_json(file)) if file.is_file() else RunningNote()
    earlier = (*before.earlier, *([before.flow_run] if before.flow_run else []))
    runs = (*before.unfinished, *([before.mlflow_run] if before.mlflow_run else []))
    note_run(RunningNote(flow_run, unfinished=runs, earlier=earlier), file)
    if any([_crash(run) for run in earlier]):  # noqa: C419  each of them
        logger.info("the run before this one was killed; it is ended as killed in Prefect and MLflow")
    unfinished = [run for run in runs if not _kill(run, logger)]
    note_run(RunningNote(flow_run, unfinished=tuple(unfinished)), file)
    return unfinished


def _kill(run: str, logger: Logger) -> bool:
    """Whether the MLflow run has ended, or is none of this store."""
    try:
        kill_pipeline_run(run)
    except Unreachable as error:
        logger.warning("an interrupted run is still RUNNING in MLflow: %s", error)
        return False
    except UserError as error:  # another MLflow store than then
        logger.warning("an interrupted run may still be RUNNING in MLflow: %s", error)
    return True


def _crash(flow_run: str) -> bool:
    """Set the flow run and its tasks to Crashed, unless they have ended. Whether the flow run had not."""
    state: State[None] = Crashed(message="its process was killed")
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(flow_run))
        except ObjectNotFound:  # another Prefect database
            return False
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        for task in tasks:
            if task.state is not None and not task.state.is_final():
                client.set_task_run_state(task.id, state, force=True)
        if run.state is None or run.state.is_final():
            return False
        client.set_flow_run_state(run.id, state, force=True)
        return True
