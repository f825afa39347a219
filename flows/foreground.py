"""One run of the flow in this process: checks and a Prefect server before it, the summary or its error after it.

Prefect reads its settings when it is imported. So `prepare_run` is called first, and this module does not import it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from components.core.errors import BAD_INPUT, TRY_LATER, Unreachable, UserError
from components.core.params import load_settings
from components.core.process import quiet_environment
from components.tracking.client import import_mlflow
from flows.parameters import set_parameters
from flows.server import leave_without_server, start_prefect_server, wait_until_healthy
from flows.workspace import check_workspace, claim_workspace

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

FAILED, INTERRUPTED = 1, 130  # exit codes; 130 is a shell's code for SIGINT: 128 + 2


def prepare_run(assignments: Sequence[str] = ()) -> None:
    """Make the assignments in params.yaml, check the project, and start a Prefect server when none is configured.

    Raises UserError for a mistake, Unreachable when another run is at work in this folder.
    """
    set_parameters(assignments, check_workspace)
    with claim_workspace():
        pass  # the flow takes the lock; here a busy folder is noticed before Prefect is imported
    quiet_environment()
    start_prefect_server()


def run_flow(flow: Callable[..., State[Any]], *, commit: bool = True) -> int:
    """Run the flow, print the summary or the failed stage's errors, and return the exit code.

    Raises the flow's UserError, and Unreachable when another run is at work in this folder.
    """
    from httpx import TransportError

    from flows.summary import print_summary
    from flows.task import StageError

    import_mlflow()  # while the server starts
    wait_until_healthy()
    try:
        state = flow(commit=commit, return_state=True)
    except TransportError:  # Prefect could not report the end
        leave_without_server()
    except KeyboardInterrupt:
        print("stopped; `iterit run` goes on with the stage that was interrupted", file=sys.stderr)
        return INTERRUPTED
    if state.is_completed():
        if state.name == "Busy":
            raise Unreachable(f"{state.message}; try again when it has ended")
        print_summary(load_settings(), new=state.name == "Retrained")
        return 0
    failure = state.result(raise_on_failure=False)
    if isinstance(failure, UserError):
        raise failure
    if isinstance(failure, StageError):
        print("\n".join(failure.lines), file=sys.stderr)
        return failure.exit_code if failure.exit_code in (BAD_INPUT, TRY_LATER) else FAILED
    return FAILED
