"""`iterit compare` in the foreground: checks and a Prefect server before the flow, the answer or its error after it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from components.comparison.answer import Answer
from components.comparison.cells import make_cells
from components.comparison.settings import read_comparison
from components.core.errors import BAD_INPUT, TRY_LATER, Unreachable, UserError
from components.core.params import read_params
from components.core.process import quiet_environment
from flows.cell_folder import check_committed
from flows.foreground import FAILED, INTERRUPTED
from flows.server import start_prefect_server, wait_until_healthy
from flows.workspace import WorkspaceBusyError, check_repository


def plan(file: Path, workers: int) -> None:
    """Print what the comparison will cost. Raises UserError; a failed stage of the probe ends with its exit code."""
    check_repository()
    quiet_environment()
    from flows.cell_work import comparison_lock
    from flows.compare import prepare
    from flows.plan import plan as make
    from flows.plan import print_plan
    from flows.task import StageError

    comparison, cells, bench = prepare(file, workers)
    try:
        with comparison_lock(bench.places):
            planned = make(comparison, cells, bench, workers)
    except WorkspaceBusyError as busy:
        raise Unreachable(f"{busy}; try again when it has ended") from None
    except StageError as error:
        raise UserError(*(line.removeprefix("error: ") for line in error.lines)) from None
    if planned is None:
        print("nothing to run: all cells are finished; `iterit compare` makes the answer")
    else:
        print_plan(planned, comparison, workers)


def compare(file: Path, workers: int) -> int:
    """Run the comparison, print its answer, and return the exit code. Raises UserError before anything runs."""
    check_repository()
    comparison = read_comparison(file)
    cells = make_cells(comparison, read_params(), str(file))  # before Prefect is imported
    check_committed()
    quiet_environment()
    start_prefect_server()
    from prefect.task_runners import ThreadPoolTaskRunner

    from flows.cell_work import Places
    from flows.compare import compare as flow
    from flows.comparison_files import print_answer
    from flows.task import StageError

    wait_until_healthy()
    try:
        runner: Any = ThreadPoolTaskRunner(max_workers=workers)
        state = flow.with_options(task_runner=runner)(str(file), workers, return_state=True)
    except KeyboardInterrupt:
        print("stopped; `iterit compare` goes on with the cells that are not finished", file=sys.stderr)
        return INTERRUPTED
    result: Any = state.result(raise_on_failure=False)
    if isinstance(result, Answer):
        print_answer(result, cells, Places(comparison.name), workers)
        return 0
    if state.name == "Busy":
        raise Unreachable(f"{state.message}; try again when it has ended")
    if isinstance(result, StageError):
        print("\n".join(result.lines), file=sys.stderr)
        return result.exit_code if result.exit_code in (BAD_INPUT, TRY_LATER) else FAILED
    if isinstance(result, UserError):
        raise result
    return FAILED
