"""`iterit compare --plan`: what the comparison will cost, by the data stages of its pools and a probe of its cells."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from components.comparison.cells import Cell, pools_of, set_params
from components.comparison.facts import measure_texts, read_pool, selected_ids
from components.comparison.plan import Plan, Probe, Sized, Timing, make_plan
from components.comparison.settings import Comparison
from components.core.files import read_json
from components.core.params import check_settings
from components.core.paths import seconds_file
from flows.cell_folder import open_folder, remove_folder
from flows.cell_work import Bench, check_sizes, own_stages, read_finished, stages_of_pool

POOL, HOLDOUT = 48, 16  # records of a probe
PETA = 1e15


def plan(comparison: Comparison, cells: Sequence[Cell], bench: Bench, workers: int) -> Plan | None:
    """Measure, and plan the cells that are not finished; None where all are. Raises StageError and UserError."""
    missing = pools_of([cell for cell in cells if read_finished(cell, bench) is None])
    if not missing:
        return None
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        pools = {}
        for name, own in missing.items():
            progress.add_task(f"the pool {name}: its data and base model, which the comparison will use")
            pools[name] = _size(name, own, bench)
        probed = next((cell for own in missing.values() for cell in own if cell.settings.score.model != "none"), None)
        progress.add_task(f"a probe of a cell on {POOL} records, {workers} side by side")
        probe = _probe(probed or cells[0], bench, workers)
    return make_plan(missing, pools, probe, workers, trains=comparison.train)


def _size(name: str, cells: Sequence[Cell], bench: Bench) -> Sized:
    """Make the pool, which no model reads yet."""
    folder = open_folder(bench.places.work / f"pool-{name}", cells[0].params)
    bench.workers.run(folder.project, stages_of_pool(cells[0], evaluated=False), _unheard, alone=True)
    facts = read_pool(folder.project)
    check_sizes(cells, facts, trains=bench.trains)
    texts = measure_texts(folder.project / "data/pool.parquet", folder.project / "models/base", cells[0].settings.score)
    return Sized(facts, texts)


def _probe(cell: Cell, bench: Bench, workers: int) -> Probe:
    """Run the probe in as many folders at a time as there are workers; its timings are the means."""
    places = [bench.places.work / f"probe-{number}" for number in range(workers)]
    probe = _on_few_records(cell)
    folders = [open_folder(place, probe.params).project for place in places]
    bench.workers.run(folders[0], stages_of_pool(probe, evaluated=False), _unheard, alone=True)
    with ThreadPoolExecutor(workers) as threads:
        try:
            timed = list(threads.map(lambda folder: _time(probe, folder, bench), folders))
        except BaseException:
            bench.workers.stop()
            raise
    found = _mean(timed)
    for place in places:
        remove_folder(place)
    return found


def _on_few_records(cell: Cell) -> Cell:
    """The cell with a small pool, from which it picks two batches at random, although the model scores it."""
    changes = {
        "dedupe.max_records": POOL,
        "dedupe.max_holdout": HOLDOUT,
        "select.strategy": "random-fresh",
        "select.max_complexity_quantile": None,
        "select.ratio": min(2 * cell.settings.finetune.batch_size, POOL // 2),
        "select.tokens": None,
        "select.quotas": {},
        "score.model": "current",
        "score.measure": "complexity",
        "score.max_misaligned_share": 1.0,
    }
    params = set_params(cell.params, changes, "probe")
    return replace(cell, params=params, settings=check_settings(params, "probe"))


def _time(cell: Cell, folder: Path, bench: Bench) -> Probe:
    stages = own_stages(cell, bench)
    started = time.monotonic()
    # nothing goes into DVC's cache, so that the next probe is timed, too
    bench.workers.run(folder, [*stages_of_pool(cell, evaluated=False), *stages], _unheard, kept=lambda _: False)
    between = time.monotonic() - started - sum(read_json(folder / seconds_file(stage))["seconds"] for stage in stages)
    pool, holdout = (
        measure_texts(folder / f"data/{name}.parquet", folder / "models/base", cell.settings.score).tokens
        for name in ("pool", "holdout")
    )
    picks = selected_ids(folder / "data/iterations/1/selection.parquet")
    tokens = {
        "score@1": sum(both for both, _ in pool.values()),
        "select@1": 0,
        "finetune@1": sum(pool[one][0] for one in picks),
        f"evaluate@{list(cell.settings.iterations)[-1]}": sum(both for both, _ in holdout.values()),
    }
    timings = {
        stage.partition("@")[0]: _timing(folder / seconds_file(stage), read)
        for stage, read in tokens.items()
        if stage in stages
    }
    checkpoints = [folder / kind / key for kind in ("models", "state") for key in cell.settings.iterations]
    return Probe(timings, max(between, 0.0), sum(map(_size_of, checkpoints)), _size_of(folder / "models"))


def _timing(file: Path, tokens: int) -> Timing:
    seconds = read_json(file)
    return Timing(seconds["seconds"] - seconds["arithmetic"], seconds["arithmetic"] / tokens if tokens else 0.0)


def _mean(probes: Sequence[Probe]) -> Probe:
    timings = {
        name: Timing(
            fmean(one.timings[name].fixed for one in probes), fmean(one.timings[name].per_token for one in probes)
        )
        for name in probes[0].timings
    }
    return replace(probes[0], timings=timings, between=fmean(one.between for one in probes))


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _unheard(_: str) -> None:
    """The lines that a stage prints; an error repeats them."""


def print_plan(planned: Plan, comparison: Comparison, workers: int) -> None:
    """Print the plan."""
    sizes = {name: len(getattr(comparison, name)) for name in ("arms", "seeds", "budgets", "noise")}
    grid = " x ".join(f"{name} {size}" for name, size in sizes.items())
    operations = (planned.choosing_operations, planned.training_operations, planned.measuring_operations)
    choosing, training, measuring = (f"{one / PETA:,.3g}" for one in operations)
    hours = f"{planned.seconds / 3600:.1f} h" if planned.seconds >= 3600 else f"{planned.seconds / 60:.0f} min"
    print(f"cells        {planned.cells} to run ({grid}), {workers} at a time")
    print(f"passes       {planned.passes:,} forward passes to choose, {planned.measuring_passes:,} to measure")
    print(f"operations   {choosing} PFLOP to choose, {training} to train, {measuring} to measure")
    print(f"time         {hours}, by a probe of a cell on this machine")
    print(f"disk         {planned.bytes / 2**30:.1f} GiB while it runs; checkpoints go when they are measured")
