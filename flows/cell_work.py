"""The work of a comparison: what the cells of a pool share, computed once, then each cell in a folder of its own.

What a cell gives is in comparisons/NAME/ as soon as all of it is there. Then its folder is removed, checkpoints
included: docs/compare.md says how they are made again. A killed cell goes on with the stage that it was in.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from components.comparison.answer import Finished
from components.comparison.cells import Cell, score_blocks, scored_by
from components.comparison.facts import PoolFacts, Scoring, facts_from, read_cell, read_pool, read_scoring
from components.comparison.measures import read_measures
from components.core.errors import UserError
from components.core.files import read_json, write_json
from components.core.lock import LockedError, exclusive_lock
from components.core.paths import SCRATCH, seconds_file
from components.data import tables
from components.model.throughput import ModelSize, read_size
from components.scoring.store import EMBEDDINGS, STORE
from flows.cell_folder import (
    CellFolder,
    bring,
    folder_digest_of,
    open_folder,
    record_experiment,
    remove_folder,
    write_params,
)
from flows.stages import data_stages, iteration_stages
from flows.workers import Log, Workers
from flows.workspace import WorkspaceBusyError

RESULTS = Path("comparisons")
WORK = SCRATCH / "compare"
FEWEST_HOLDOUT = 2  # records: one has no spread
WHOLE = "all"  # in a file of seconds: the whole work of a cell or a pool since it was last started
PARTS = {"score": "choosing", "select": "choosing", "finetune": "training", "evaluate": "measuring"}


@dataclass(frozen=True, slots=True)
class Places:
    """Where a comparison of a name has its files."""

    name: str

    @property
    def results(self) -> Path:
        return RESULTS / self.name

    @property
    def work(self) -> Path:
        return WORK / self.name

    @property
    def lock(self) -> Path:
        return WORK / f"{self.name}.lock"

    @property
    def note(self) -> Path:
        """Of flows/interrupted.py."""
        return WORK / f"{self.name}.running.json"

    def cell(self, cell: Cell) -> Path:
        return self.results / "cells" / f"{cell.name}.json"

    def pool(self, pool: str) -> Path:
        return self.results / "pools" / f"{pool}.json"

    def measures(self, name: str) -> Path:
        """tables.MEASURES of a cell's last checkpoint, or, by the name of a pool, of the base model."""
        return self.results / "measures" / f"{name}.parquet"

    def seconds(self, name: str) -> Path:
        """How long a cell or a pool took: the only files that differ from run to run."""
        return self.results / "seconds" / f"{name}.json"


@contextmanager
def comparison_lock(places: Places) -> Iterator[None]:
    """Hold the comparison's lock until the block or the process ends. Raises WorkspaceBusyError."""
    try:
        with exclusive_lock(places.lock):
            yield
    except LockedError as holder:
        raise WorkspaceBusyError(f"the comparison {places.name} is at work (process {holder})") from None


@dataclass(frozen=True, slots=True)
class Bench:
    """What all the work of a comparison has."""

    places: Places
    workers: Workers
    trains: bool
    """Otherwise only the first choice is made."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What the cells of a pool share, in its folder."""

    name: str
    folder: CellFolder
    facts: PoolFacts
    size: ModelSize
    """Of the model that is trained."""
    scorings: Mapping[str | None, Scoring | None]
    """By scored_by."""


def prepare_pool(name: str, cells: Sequence[Cell], bench: Bench, log: Log) -> Pool:
    """Make the data, the base model, its losses on the pool and its evaluation; once for each block `score`.

    Raises StageError, and UserError for a budget that the pool cannot fill or a holdout that is too small.
    """
    first, places, started = cells[0], bench.places, time.monotonic()
    folder = open_folder(places.work / f"pool-{name}", first.params)
    bench.workers.run(folder.project, stages_of_pool(first, evaluated=False), log, alone=True)
    facts = read_pool(folder.project)
    check_sizes(cells, facts, trains=bench.trains)
    seconds: dict[str, float] = read_json(places.seconds(name)) if places.seconds(name).is_file() else {}
    for cell in score_blocks(cells):
        write_params(folder.project, {**first.params, "score": cell.params["score"]})
        came = bench.workers.run(
            folder.project, [*stages_of_pool(cell, evaluated=bench.trains), "score@1"], log, alone=True
        )
        if (known := scored_by(cell)) and came["score@1"] == "ran":
            seconds.setdefault(known, _seconds_of(folder.project, "score@1"))
    seconds.setdefault(WHOLE, round(time.monotonic() - started, 3))
    write_json(places.seconds(name), seconds)
    if bench.trains:
        tables.write(places.measures(name), read_measures(folder.project, "base"), tables.MEASURES)
    write_json(places.pool(name), asdict(facts))
    return Pool(
        name,
        folder,
        facts,
        read_size(folder.project / "models/base"),
        {scored_by(cell): read_scoring(folder.project, cell) for cell in score_blocks(cells)},
    )


def check_sizes(cells: Iterable[Cell], facts: PoolFacts, *, trains: bool) -> None:
    """Raises UserError for a budget above the pool, and for a holdout without a spread."""
    if trains and facts.holdout < FEWEST_HOLDOUT:
        raise UserError(
            f"dedupe.holdout_share: leaves {facts.holdout} records in the holdout; a comparison needs {FEWEST_HOLDOUT} "
            "at the very least, and hundreds to show anything"
        )
    for cell in cells:
        if cell.settings.select.records_per_iteration(facts.records) > facts.records:
            raise UserError(f"compare.yaml: budgets: {cell.budget:g}: the pool has {facts.records} records")


def run_cell(cell: Cell, pool: Pool, bench: Bench, log: Log) -> Finished:
    """Choose, train and measure, and write what came of it. Raises StageError."""
    place, started = bench.places.work / cell.name, time.monotonic()
    folder = open_folder(place, cell.params)
    for store in (STORE, EMBEDDINGS):  # a base model or proxy reads each record once
        if (pool.folder.project / store).is_dir():
            bring(pool.folder.project / store, folder.project / store)
    bench.workers.run(
        folder.project, [*stages_of_pool(cell, evaluated=bench.trains), *own_stages(cell, bench)], log, kept=_is_small
    )
    finished = _write_results(cell, folder, pool, bench, started)
    remove_folder(place)
    return finished


def stages_of_pool(cell: Cell, *, evaluated: bool) -> list[str]:
    """The stages that a cell shares with its pool, with or without those that read the holdout with the base model."""
    stages = list(data_stages(cell.settings))
    return stages if evaluated else [stage for stage in stages if not stage.startswith(("evaluate", "benchmark@"))]


def own_stages(cell: Cell, bench: Bench) -> list[str]:
    """The stages of a cell alone; of its checkpoints only the last is measured."""
    if not bench.trains:
        return ["score@1", "select@1"]
    *before, last = cell.settings.iterations
    stages = [stage for key in (*before, last) for stage in iteration_stages(cell.settings, key)]
    unmeasured = {f"{name}@{key}" for name in ("evaluate", "benchmark") for key in before}
    return [stage for stage in stages if stage not in unmeasured]


def _is_small(stage: str) -> bool:
    """Whether DVC's cache keeps what the stage writes; checkpoints of all cells would fill a disk."""
    return not stage.startswith("finetune@")


def _write_results(cell: Cell, folder: CellFolder, pool: Pool, bench: Bench, started: float) -> Finished:
    """Write the cell's files and its DVC experiment; the JSON file comes last and says that all is there."""
    places, name = bench.places, f"{bench.places.name}-{cell.name}"
    measures = None
    if bench.trains:
        measures = read_measures(folder.project, list(cell.settings.iterations)[-1])
        tables.write(places.measures(cell.name), measures, tables.MEASURES)
    facts = read_cell(folder.project, cell, pool.scorings[scored_by(cell)], pool.size)
    seconds = dict.fromkeys(PARTS.values(), 0.0)
    for stage in own_stages(cell, bench):
        if part := PARTS.get(stage.partition("@")[0]):
            seconds[part] += _seconds_of(folder.project, stage)
    seconds[WHOLE] = round(time.monotonic() - started, 3)
    write_json(places.seconds(cell.name), seconds)
    commit = record_experiment(folder, name, f"iterit compare: {cell.name}")
    write_json(
        places.cell(cell),
        {
            "arm": cell.arm,
            "budget": cell.budget,
            "noise": cell.noise,
            "seed": cell.seed,
            "pool": pool.name,
            "made_of": folder_digest_of(cell.params),
            "experiment": name,
            "commit": commit,
            "facts": asdict(facts),
        },
    )
    return Finished(cell, facts, measures)


def read_finished(cell: Cell, bench: Bench) -> Finished | None:
    """What a finished cell gave; None where it is not finished, or was made of something else."""
    file = bench.places.cell(cell)
    if not file.is_file() or (known := read_json(file))["made_of"] != folder_digest_of(cell.params):
        return None
    measures = bench.places.measures(cell.name)
    if bench.trains and not measures.is_file():
        return None
    return Finished(cell, facts_from(known["facts"]), tables.read(measures, tables.MEASURES) if bench.trains else None)


def _seconds_of(project: Path, stage: str) -> float:
    """How long the stage took when it ran in the folder; 0 where its outputs came from DVC's cache."""
    file = project / seconds_file(stage)
    return float(read_json(file)["seconds"]) if file.is_file() else 0.0
