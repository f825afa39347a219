"""Stage `report`: the iterations side by side, as the CSV files that `dvc plots` draws and as the rows of a table.

Only iterations that params.yaml names are taken: files of an iteration that was removed there may still lie around.

    python -m components.report --metrics metrics --iterations data/iterations
        --series plots/iterations.csv --holdout plots/holdout.csv
        --steps plots/steps.csv --complexity plots/complexity.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.core.files import read_csv, read_json, write_csv
from components.core.params import load_settings
from components.core.paths import seconds_file
from components.core.settings.pipeline import Settings
from components.core.stage import stage, stage_name
from components.data import tables
from components.provenance.statements import statement_of
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
    seconds: float | None
    """What its stages took when they last ran in this workspace; None when one of them never did."""


def write_report(
    settings: Settings,
    metrics: Path,
    iterations: Path,
    *,
    series: Path,
    holdout: Path,
    steps: Path,
    complexity: Path,
) -> None:
    """Write the CSV files: figures per iteration, holdout figures with the base model, steps, and histograms."""
    folders = [iterations / key for key in settings.iterations]
    rows = [asdict(row) for row in iteration_rows(settings, metrics, iterations)]
    # the base model is in a file of its own: a page of plots draws its empty cells as 0
    write_csv(series, SERIES, rows[1:])
    write_csv(holdout, HOLDOUT, rows)
    write_csv(steps, STEPS, [row for folder in folders for row in read_csv(folder / "steps.csv")])
    write_csv(complexity, COMPLEXITY, [row for folder in folders for row in read_csv(folder / "complexity.csv")])


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
        seconds=_seconds(stage_name(name, key) for name in STAGES),
    )


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
    for name in ("metrics", "iterations", "series", "holdout", "steps", "complexity"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    with stage("report") as running, statement_of(running.name):
        settings = load_settings()
        write_report(settings, **vars(options))
        prune_trainer_states(Path("state") / list(settings.iterations)[-1])


if __name__ == "__main__":
    main()
