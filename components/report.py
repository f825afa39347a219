"""Stage `report`: the iterations side by side, as the CSV files that `dvc plots` draws and as the rows of a table.

Only iterations that params.yaml names are taken: files of an iteration that was removed there may still lie around.

    python -m components.report --metrics metrics --iterations data/iterations --pool data/pool.parquet
        --series plots/iterations.csv --holdout plots/holdout.csv --steps plots/steps.csv ...
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.core.files import read_csv, read_json, require_file, write_csv
from components.core.params import load_settings
from components.core.paths import seconds_file
from components.core.settings.pipeline import Settings
from components.core.stage import stage, stage_name
from components.data import tables
from components.provenance.statements import statement_of
from components.series.composition import LengthRow, SourceRow, length_rows, source_rows
from components.series.picks import Complexities, HardRow, OverlapRow, PickRow, hard_rows, overlap_rows, pick_rows
from components.training.state import prune_trainer_states

STAGES = ("score", "select", "finetune", "evaluate")  # of one iteration

# columns of the CSV files
SERIES = (
    "iteration",
    "scored",
    "selected",
    "mean_complexity",
    "training_loss",
    "holdout_loss",
    "perplexity",
    "holdout_complexity",
)
HOLDOUT = ("iteration", "holdout_loss", "perplexity", "holdout_complexity")
STEPS = tuple(tables.STEPS.names)
COMPLEXITY = ("iteration", "complexity", "candidates", "selected")


@dataclass(frozen=True, slots=True)
class IterationRow:
    """The figures of one iteration, or of the base model, which has no selection and no training."""

    iteration: int
    """0 for the base model."""
    scored: int | None
    """Records scored."""
    selected: int | None
    """Records selected."""
    mean_complexity: float | None
    """Of the records scored."""
    training_loss: float | None
    """Mean over the iteration's optimizer steps, in nats; None when it made none."""
    holdout_loss: float
    """Nats per token."""
    holdout_half_width: float | None
    """Of the 95 % interval of the holdout loss; None for a holdout of one record."""
    perplexity: float
    """On the holdout."""
    holdout_complexity: float
    """Mean complexity of the holdout."""
    target_loss: float | None
    """Nats per token; None without targets."""
    target_half_width: float | None
    seconds: float | None
    """What its stages took when they last ran in this workspace; None when one of them never did."""


@dataclass(frozen=True, slots=True)
class HoldoutSourceRow:
    """The loss on the holdout records of one source, in nats per token; `loss_low` and `loss_high` as in metrics."""

    iteration: int
    """0 for the base model."""
    source: str
    records: int
    loss: float
    loss_low: float | None
    loss_high: float | None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the stage reads."""

    metrics: Path
    iterations: Path
    pool: Path


@dataclass(frozen=True, slots=True)
class Plots:
    """The CSV files that the stage writes."""

    series: Path
    holdout: Path
    steps: Path
    complexity: Path
    holdout_sources: Path
    picks: Path
    overlap: Path
    hard: Path
    sources: Path
    lengths: Path


def write_report(settings: Settings, inputs: Inputs, plots: Plots) -> None:
    """Write the CSV files. Raises UserError when a file of an iteration is missing."""
    folders = [inputs.iterations / key for key in settings.iterations]
    rows = [asdict(row) for row in iteration_rows(settings, inputs.metrics, inputs.iterations)]
    # the base model is in a file of its own: a page of plots draws its empty cells as 0
    write_csv(plots.series, SERIES, rows[1:])
    write_csv(plots.holdout, HOLDOUT, rows)
    write_csv(plots.steps, STEPS, [row for folder in folders for row in read_csv(folder / "steps.csv")])
    write_csv(plots.complexity, COMPLEXITY, [row for folder in folders for row in read_csv(folder / "complexity.csv")])
    _write_rows(plots.holdout_sources, HoldoutSourceRow, list(_holdout_source_rows(settings, inputs.metrics)))
    picks = {int(folder.name): _read_picks(folder) for folder in folders}
    _write_rows(plots.picks, PickRow, pick_rows(picks))
    _write_rows(plots.overlap, OverlapRow, overlap_rows(picks))
    scores = {int(folder.name): _read_complexities(folder) for folder in folders}
    _write_rows(plots.hard, HardRow, hard_rows(scores, {key: len(ids) for key, ids in picks.items()}))
    _write_rows(plots.sources, SourceRow, source_rows(_read_columns(inputs.pool, "id", "source"), picks))
    lengths = {
        int(folder.name): _read_columns(folder / "scores.parquet", "id", "response_tokens") for folder in folders
    }
    _write_rows(plots.lengths, LengthRow, length_rows(lengths, picks))


def _write_rows(path: Path, row: type[Any], rows: Sequence[Any]) -> None:
    """Write instances of a dataclass; its fields are the columns."""
    write_csv(path, [field.name for field in fields(row)], map(asdict, rows))


def _holdout_source_rows(settings: Settings, metrics: Path) -> Iterator[HoldoutSourceRow]:
    for number, key in enumerate(("base", *settings.iterations)):
        for name, figures in read_json(metrics / "evaluate" / f"{key}.json")["sources"].items():
            yield HoldoutSourceRow(number, name, **figures)


def _read_picks(folder: Path) -> list[str]:
    """The ids of an iteration's picks, in no particular order."""
    status = _read_columns(folder / "selection.parquet", "id", "status")
    return [key for key, value in status.items() if value == "selected"]


def _read_complexities(folder: Path) -> Complexities:
    complexity = _read_columns(folder / "scores.parquet", "id", "complexity")
    return {key: value for key, value in complexity.items() if value is not None}


def _read_columns(path: Path, key: str, value: str) -> dict[str, Any]:
    """Two columns of a table as a mapping, in its order. Raises UserError when the file is missing."""
    require_file(path)
    with pq.ParquetFile(path) as file:
        table = file.read(columns=[key, value])
    return dict(zip(table[key].to_pylist(), table[value].to_pylist(), strict=True))


def iteration_rows(settings: Settings, metrics: Path, iterations: Path) -> list[IterationRow]:
    """One row for the base model, then one per iteration. Raises UserError when a file of an iteration is missing."""
    return [_base_row(metrics), *(_iteration_row(key, metrics, iterations / key) for key in settings.iterations)]


def _base_row(metrics: Path) -> IterationRow:
    evaluated = read_json(metrics / "evaluate" / "base.json")
    return IterationRow(
        iteration=0,
        scored=None,
        selected=None,
        mean_complexity=None,
        training_loss=None,
        holdout_loss=evaluated["loss"],
        holdout_half_width=_half_width(evaluated),
        perplexity=evaluated["perplexity"],
        holdout_complexity=evaluated["mean_complexity"],
        **_target(evaluated),
        seconds=_seconds(["evaluate_base"]),
    )


def _iteration_row(key: str, metrics: Path, folder: Path) -> IterationRow:
    score, select, evaluate = (read_json(metrics / name / f"{key}.json") for name in ("score", "select", "evaluate"))
    losses = [float(step["loss"]) for step in read_csv(folder / "steps.csv")]
    return IterationRow(
        iteration=int(key),
        scored=score["records"],
        selected=select["selected"],
        mean_complexity=score["mean_complexity"],
        training_loss=round(sum(losses) / len(losses), 6) if losses else None,
        holdout_loss=evaluate["loss"],
        holdout_half_width=_half_width(evaluate),
        perplexity=evaluate["perplexity"],
        holdout_complexity=evaluate["mean_complexity"],
        **_target(evaluate),
        seconds=_seconds(stage_name(name, key) for name in STAGES),
    )


def _target(evaluated: Mapping[str, Any]) -> dict[str, float | None]:
    """The two fields of IterationRow that are about targets."""
    target = evaluated.get("target")
    if target is None:
        return {"target_loss": None, "target_half_width": None}
    return {"target_loss": target["loss"], "target_half_width": _half_width(target)}


def _half_width(evaluated: Mapping[str, Any]) -> float | None:
    if evaluated["loss_low"] is None:
        return None
    return float(evaluated["loss_high"] - evaluated["loss_low"]) / 2


def _seconds(stages: Iterable[str]) -> float | None:
    files = [seconds_file(name) for name in stages]
    if not all(file.is_file() for file in files):
        return None
    return round(sum(float(read_json(file)["seconds"]) for file in files), 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m components.report", description="Put the iterations side by side.")
    for field in (*fields(Inputs), *fields(Plots)):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=Path, required=True)
    options = vars(parser.parse_args())
    inputs = Inputs(**{field.name: options.pop(field.name) for field in fields(Inputs)})
    with stage("report") as running, statement_of(running.name):
        settings = load_settings()
        write_report(settings, inputs, Plots(**options))
        prune_trainer_states(Path("state") / list(settings.iterations)[-1])


if __name__ == "__main__":
    main()
