"""The comparing flow: one Prefect task a pool and a cell, as many cells side by side as there are workers.

    iterit compare                                what compare.yaml says
    iterit compare other.yaml --workers 2

A finished cell is not run again; comparisons/NAME/ has its results, DVC its experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from components.comparison.answer import Answer, Finished, make_answer
from components.comparison.cells import Cell, make_cells, pools_of
from components.comparison.facts import PoolFacts
from components.comparison.settings import Comparison, read_comparison
from components.core.errors import UserError
from components.core.files import read_json
from components.core.params import load_settings, read_params
from components.data import tables
from flows.cell_folder import check_committed, remove_folder
from flows.cell_work import Bench, Places, comparison_lock, prepare_pool, read_finished, run_cell
from flows.comparison_files import write_comparison
from flows.interrupted import begin_run
from flows.task import StageError
from flows.workers import Log, StoppedError, Workers, share_machine
from flows.workspace import WorkspaceBusyError


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def in_prefect(name: str, work: Callable[[Log], Any]) -> State[Any]:  # noqa: ARG001  Prefect takes it for the task's name
    """Do the work, which gets a function for the lines that it prints; what it cannot do is a Failed state."""
    try:
        return Completed(data=work(partial(get_run_logger().info, "%s")))
    except (StageError, UserError, StoppedError) as error:
        return Failed(message=str(error), data=error)


@flow(name="compare")
def compare(file: str, workers: int) -> State[Any]:
    """Run the cells of a compare.yaml that are not finished, and write the answer.

    The result of a completed state is the Answer, that of a failed one a UserError or StageError.
    """
    try:
        comparison, cells, bench = prepare(Path(file), workers)
        with comparison_lock(bench.places):
            begin_run(flow_run.id, get_run_logger(), bench.places.note)
            found = _run_cells(cells, bench)
            result = _answer(comparison, cells, found, bench)
            write_comparison(Path(file), load_settings(), result, cells, bench.places, get_run_logger())
            remove_folder(bench.places.work)
    except WorkspaceBusyError as busy:
        get_run_logger().warning("%s; this one ends", busy)
        return Completed(name="Busy", message=str(busy))
    except (UserError, StageError) as error:
        return Failed(message=str(error), data=error)
    return Completed(name="Compared", data=result)


def prepare(file: Path, workers: int) -> tuple[Comparison, list[Cell], Bench]:
    """What the file describes. Raises UserError, one line a mistake, before anything runs."""
    comparison = read_comparison(file)
    cells = make_cells(comparison, read_params(), str(file))
    check_committed()
    return comparison, cells, Bench(Places(comparison.name), Workers(share_machine(workers)), comparison.train)


def _run_cells(cells: Sequence[Cell], bench: Bench) -> dict[str, Finished]:
    """All cells by name. Raises UserError or StageError when one of them, or its pool, failed: the others ran."""
    known = {cell.name: read_finished(cell, bench) for cell in cells}
    missing = [cell for cell in cells if known[cell.name] is None]
    get_run_logger().info("%d of %d cells are finished", len(cells) - len(missing), len(cells))
    try:
        pools: dict[str, Any] = {
            name: in_prefect(f"pool {name}", partial(prepare_pool, name, own, bench), return_state=True).result()
            for name, own in pools_of(missing).items()
        }
        futures = {
            cell.name: in_prefect.submit(cell.name, partial(run_cell, cell, pools[cell.pool], bench))
            for cell in missing
        }
        for future in futures.values():
            future.wait()
    except BaseException:
        bench.workers.stop()
        raise
    results: dict[str, Any] = {name: future.state.result(raise_on_failure=False) for name, future in futures.items()}
    failures = {name: result for name, result in results.items() if isinstance(result, Exception)}
    if failures:
        raise _first(failures, len(cells))
    return {name: one for name, one in (known | results).items() if one is not None}


def _first(failures: Mapping[str, Exception], cells: int) -> Exception:
    """The first failure, with how many there are."""
    name, error = next(iter(failures.items()))
    get_run_logger().error("%d of %d cells failed; the first is %s", len(failures), cells, name)
    return error


def _answer(comparison: Comparison, cells: Sequence[Cell], found: Mapping[str, Finished], bench: Bench) -> Answer:
    pools = {name: PoolFacts(**read_json(bench.places.pool(name))) for name in pools_of(cells)}
    base = {name: tables.read(bench.places.measures(name), tables.MEASURES) for name in pools if comparison.train}
    return make_answer(comparison, [found[cell.name] for cell in cells], pools, base)
