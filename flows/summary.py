"""The summary at the end of a run: the iterations side by side, where the results are, and how to look at them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from components.core.errors import UserError
from components.core.files import read_json
from components.core.paths import SECONDS
from components.core.settings.pipeline import Settings
from components.promotion.registered import read_registered
from components.register import describe_checkpoint
from components.report import IterationRow, iteration_rows
from components.tracking.client import LOCAL_PAGE as MLFLOW_PAGE
from components.tracking.registry import version_of_checkpoint
from flows.page import PAGE
from flows.resolution import too_small_after_all

PREFECT_PAGE = "http://127.0.0.1:4200"  # where `prefect server` listens by default

WIDTH = 100  # columns, in which the table fits

COLUMNS = {  # field of IterationRow: heading, format
    "iteration": ("iteration", "d"),
    "scored": ("records\nscored", ",d"),
    "selected": ("records\nselected", ",d"),
    "mean_complexity": ("mean\ncomplexity", ".4f"),
    "training_loss": ("training\nloss", ".4f"),
    "holdout_loss": ("holdout\nloss", ".4f"),
    "perplexity": ("holdout\nperplexity", ".3f"),
    "target_loss": ("target\nloss", ".4f"),
    "seconds": ("seconds", ".1f"),
}
ONLY_WHERE_KNOWN = ("target_loss",)  # columns that a run without any such figure does not have
HALF_WIDTHS = {"holdout_loss": "holdout_half_width", "target_loss": "target_half_width"}


def read_rows(settings: Settings) -> list[IterationRow]:
    """The rows of the workspace's iterations, from where dvc.yaml puts their files."""
    return iteration_rows(settings, Path("metrics"), Path("data/iterations"))


def summary_table(rows: Sequence[IterationRow]) -> Table:
    """The rows as a table for people; `-` for a figure that a row does not have, after `±` half of a 95 % interval."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    known = {field for field in COLUMNS if any(getattr(row, field) is not None for row in rows)}
    columns = {field: column for field, column in COLUMNS.items() if field in known or field not in ONLY_WHERE_KNOWN}
    for heading, _ in columns.values():
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        cells = {field: _cell(getattr(row, field), form) for field, (_, form) in columns.items()}
        if row.iteration == 0:
            cells["iteration"] = "base"
        for field, half_width in HALF_WIDTHS.items():
            if field in cells and getattr(row, half_width) is not None:
                cells[field] += f" ± {getattr(row, half_width):.2f}"
        table.add_row(*cells.values())
    return table


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_summary(settings: Settings, *, new: bool) -> None:
    """Print the table and where to look; `new` is False when the run had nothing to do."""
    # a narrower terminal wraps the table's lines; cut cells would lose figures
    console = Console(highlight=False, soft_wrap=True, width=max(Console().width, WIDTH))
    console.print()
    console.print(summary_table(read_rows(settings)))
    if new:
        console.print(f"time         {_describe_time()}")
    else:
        console.print("nothing new: this is the last run's result; nothing was registered")
    console.print(f"checkpoint   models/{list(settings.iterations)[-1]}")
    for line in _describe_registered(settings):
        console.print(line)
    if PAGE.is_file():
        console.print(f"report       {PAGE}")
    pages = {
        f"MLflow       {_command('mlflow')} server --workers 1": MLFLOW_PAGE,
        f"Prefect      {_command('prefect')} server start": PREFECT_PAGE,
    }
    width = max(map(len, pages))
    for command, address in pages.items():
        console.print(f"{command:{width}}  then {address}")


def _describe_registered(settings: Settings) -> list[str]:
    """The registered version that holds the chosen checkpoint, found by the digest of the files as they are here."""
    described = describe_checkpoint(settings, Path("models"), Path("metrics"))
    if registered := read_registered(described.checkpoint):
        reference = f"models:/{registered.model}@{registered.alias}"
        return [
            f"registered   {registered.model} version {registered.version}: {reference}",
            f"gate         {registered.gate.verdict}",
            *([f"             {registered.gate.resolution}"] if registered.gate.resolution else []),
            *([f"             {too_small}"] if (too_small := too_small_after_all(settings, registered.gate)) else []),
            *(f"             {line}" for line in registered.gate.benchmark_lines),
        ]
    try:
        version = version_of_checkpoint(described.model, described.checkpoint)
    except UserError as error:
        return [f"registered   not known: {error}"]
    if version is None:
        return [f"registered   no version of {described.model} holds models/{described.iteration}: `iterit register`"]
    return [f"registered   {described.model} version {version.number}: models:/{described.model}/{version.number}"]


def _describe_time() -> str:
    """How long this process has run, and how much of that the model computed in the stages that ran."""
    started = psutil.Process().create_time()
    stages = (file for file in SECONDS.glob("*.json") if file.stat().st_mtime > started)
    arithmetic = sum(read_json(file)["arithmetic"] for file in stages)
    total = time.time() - started
    return f"{total:.0f} s: {arithmetic:.0f} s of the model's arithmetic, {total - arithmetic:.0f} s of everything else"


def _command(name: str) -> str:
    """The program of this environment, as a user types it in this folder."""
    program = Path(sys.executable).with_name(name)
    return str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program)
