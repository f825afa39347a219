"""What a person reads at the end of a run: the iterations side by side, where things are, and how to look at them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from components.core.files import read_json
from components.core.paths import SECONDS
from components.core.settings.pipeline import Settings
from components.promotion.registered import read_registered
from components.report import iteration_rows

METRICS, ITERATIONS = Path("metrics"), Path("data/iterations")

COLUMNS = {
    "iteration": ("iteration", "d"),
    "scored": ("records\nscored", ",d"),
    "selected": ("records\nselected", ",d"),
    "mean_complexity": ("mean\ncomplexity", ".4f"),
    "training_loss": ("training\nloss", ".4f"),
    "holdout_loss": ("holdout\nloss", ".4f"),
    "perplexity": ("holdout\nperplexity", ".3f"),
    "seconds": ("seconds", ".1f"),
}


def summary_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        cells = ["-" if row[key] is None else format(row[key], form) for key, (_, form) in COLUMNS.items()]
        table.add_row("base" if row["iteration"] == 0 else cells[0], *cells[1:])
    return table


def print_summary(settings: Settings, *, new: bool) -> None:
    """Print the table and where to look; `new` is False when the run found nothing to do."""
    console = Console(highlight=False, soft_wrap=True)
    console.print()
    console.print(summary_table(iteration_rows(settings, METRICS, ITERATIONS)))
    last = list(settings.iterations)[-1]
    if new:
        console.print(f"time         {_describe_time()}")
    else:
        console.print("nothing new: this is the last run's result; nothing was registered")
    console.print(f"checkpoint   models/{last}")
    if registered := read_registered():
        console.print(
            f"registered   {registered.model} version {registered.version}: "
            f"models:/{registered.model}@{registered.alias}"
        )
        gate = registered.gate
        console.print(f"gate         {'champion' if gate.promoted else 'not the champion'}: {gate.reason}")
    pages = {
        f"MLflow       {_command('mlflow')} server --workers 1": "http://127.0.0.1:5000",
        f"Prefect      {_command('prefect')} server start": "http://127.0.0.1:4200",
    }
    width = max(map(len, pages))
    for command, address in pages.items():
        console.print(f"{command:{width}}  then {address}")


def _describe_time() -> str:
    """How long this process has been at it, and how much of that was the model's arithmetic in the stages that ran."""
    began = psutil.Process().create_time()
    stages = (file for file in SECONDS.glob("*.json") if file.stat().st_mtime > began)
    arithmetic = sum(read_json(file)["arithmetic"] for file in stages)
    whole = time.time() - began
    return f"{whole:.0f} s: {arithmetic:.0f} s of the model's arithmetic, {whole - arithmetic:.0f} s of everything else"


def _command(name: str) -> str:
    """The program of this environment, as one types it in this folder."""
    program = Path(sys.executable).with_name(name)
    return str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program)
