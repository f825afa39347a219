"""Ends what a killed run leaves in Prefect and MLflow: runs that look as if they were still going on.

A run notes down its ids while it holds the folder's lock, and removes the note at its end, also when it fails. Whoever
has the lock and finds a note knows that the run was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
    """The run that is at work in this folder; with no ids, none is."""

    flow_run: str | None = None
    """Prefect's id."""
    mlflow_run: str | None = None
    unfinished: tuple[str, ...] = ()
    """MLflow runs of killed runs that MLflow could not be asked to end yet."""


def note_run(note: RunningNote) -> None:
    """Say which run is at work, or which killed runs are still to be ended."""
    write_json(NOTE, asdict(note))


def remove_note(unfinished: Sequence[str] = ()) -> None:
    """Say that no run is at work; `unfinished` is what end_interrupted_run could not end."""
    if unfinished:
        note_run(RunningNote(unfinished=tuple(unfinished)))
    else:
        NOTE.unlink(missing_ok=True)


def end_interrupted_run(logger: Logger) -> tuple[str, ...]:
    """End the run that a kill has left running, if there is one: Crashed in Prefect, KILLED in MLflow.

    Returns the MLflow runs that could not be ended because the server does not answer: a warning, and the next run
    tries again.
    """
    if not NOTE.is_file():
        return ()
    note = RunningNote(**read_json(NOTE))
    if note.flow_run:
        _crash(note.flow_run)
        logger.info("the run before this one was killed; it is ended as killed in Prefect and MLflow")
    runs = [*note.unfinished, *([note.mlflow_run] if note.mlflow_run else [])]
    unfinished = tuple(run for run in runs if not _kill(run, logger))
    remove_note(unfinished)
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


def _crash(flow_run: str) -> None:
    """Set the flow run and its tasks to Crashed, unless they have ended."""
    state: State[None] = Crashed(message="its process was killed")
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(flow_run))
        except ObjectNotFound:  # another Prefect database
            return
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        for task in tasks:
            if task.state is not None and not task.state.is_final():
                client.set_task_run_state(task.id, state, force=True)
        if run.state is not None and not run.state.is_final():
            client.set_flow_run_state(run.id, state, force=True)
