"""The iterations side by side: what `dvc plots` draws, and the rows of the final table.

    python -m components.report --metrics metrics --iterations data/iterations
        --series plots/iterations.csv --holdout plots/holdout.csv
        --steps plots/steps.csv --complexity plots/complexity.csv

Only iterations that params.yaml names count: the files of one that was taken out there may still lie around.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
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
STAGES = ("score", "select", "finetune", "evaluate")  # of one iteration


def iteration_rows(settings: Settings, metrics: Path, iterations: Path) -> list[dict[str, Any]]:
    """One row for the base model, then one an iteration: the keys of SERIES and `seconds`.

    `iteration` is 0 for the base model; what it does not have is None. `mean_complexity` is over the records scored,
    `training_loss` the mean over the iteration's steps, `seconds` what its four stages took when they last ran here.
    """
    base = read_json(metrics / "evaluate" / "base.json")
    rows: list[dict[str, Any]] = [{**dict.fromkeys(SERIES), "iteration": 0, **_holdout(base)}]
    rows[0]["seconds"] = _seconds(["evaluate_base"])
    for key in settings.iterations:
        score, select, evaluate = (
            read_json(metrics / name / f"{key}.json") for name in ("score", "select", "evaluate")
        )
        losses = [float(step["loss"]) for step in read_csv(iterations / key / "steps.csv")]
        rows.append(
            {
                "iteration": int(key),
                "scored": score["records"],
                "selected": select["selected"],
                "mean_complexity": score["mean_complexity"],
                "training_loss": round(sum(losses) / len(losses), 6) if losses else None,
                **_holdout(evaluate),
                "seconds": _seconds([stage_name(name, key) for name in STAGES]),
            }
        )
    return rows


def _holdout(evaluated: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "holdout_loss": evaluated["loss"],
        "perplexity": evaluated["perplexity"],
        "holdout_complexity": evaluated["mean_complexity"],
    }


def _seconds(stages: Iterable[str]) -> float | None:
    """What the stages took together; None when one of them never ran in this workspace."""
    files = [seconds_file(name) for name in stages]
    if not all(file.is_file() for file in files):
        return None
    return round(sum(float(read_json(file)["seconds"]) for file in files), 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m components.report", description="Put the iterations side by side.")
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--iterations", type=Path, required=True)
    parser.add_argument("--series", type=Path, required=True)
    parser.add_argument("--holdout", type=Path, required=True)
    parser.add_argument("--steps", type=Path, required=True)
    parser.add_argument("--complexity", type=Path, required=True)
    options = parser.parse_args()
    with stage("report") as running, statement_of(running.name):
        settings = load_settings()
        folders = [options.iterations / key for key in settings.iterations]
        rows = iteration_rows(settings, options.metrics, options.iterations)
        # the base model has a file of its own to be in: a page of plots draws an empty cell as 0
        write_csv(options.series, SERIES, rows[1:])
        write_csv(options.holdout, HOLDOUT, rows)
        write_csv(options.steps, STEPS, [row for folder in folders for row in read_csv(folder / "steps.csv")])
        histograms = [row for folder in folders for row in read_csv(folder / "complexity.csv")]
        write_csv(options.complexity, COMPLEXITY, histograms)
        prune_trainer_states(Path("state") / list(settings.iterations)[-1])


if __name__ == "__main__":
    main()
