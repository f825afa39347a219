"""What a comparison leaves: answer.json, answer.md and report.html in comparisons/NAME/, a run in MLflow, a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from components.comparison.answer import Answer
from components.comparison.cells import Cell, pools_of, scored_by
from components.comparison.table import Seconds, conclusions, tables_of, to_markdown
from components.core.errors import UserError
from components.core.files import atomic_write, read_json, write_json
from components.core.settings.pipeline import Settings
from components.tracking.comparison import log_comparison
from flows.cell_folder import head
from flows.cell_work import WHOLE, Places

if TYPE_CHECKING:
    from flows.recording import Logger

ANSWER, TEXT, PAGE = "answer.json", "answer.md", "report.html"


def write_comparison(
    file: Path, settings: Settings, answer: Answer, cells: Sequence[Cell], places: Places, logger: Logger
) -> None:
    """Write the files, and record them in MLflow, which is a warning where it cannot be done."""
    from components.pages.comparison.page import Origin, comparison_page  # Altair takes a second

    seconds = read_seconds(answer, cells, places)
    origin = Origin(file.read_text(encoding="utf-8"), head(), len(cells))
    page = comparison_page(answer, seconds, origin)
    write_json(places.results / ANSWER, asdict(answer))
    for name, text in ((TEXT, to_markdown(answer, seconds)), (PAGE, page)):
        with atomic_write(places.results / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    try:
        pages = [file, places.results / TEXT, places.results / PAGE]
        log_comparison(settings, answer.name, places.results / ANSWER, _values(answer), pages)
    except UserError as error:
        logger.warning("%s: not in MLflow: %s", places.results, error)


def _values(answer: Answer) -> Mapping[str, float]:
    """MLflow's metrics: the mean of each arm in each measure."""
    return {
        f"{measure.name}/n{group.noise * 100:g}/k{group.budget:g}/{arm.replace('+', ' plus')}": result.value.mean
        for group in answer.groups
        for measure in group.measures
        for arm, result in measure.arms.items()
    }


def read_seconds(answer: Answer, cells: Sequence[Cell], places: Places) -> list[Mapping[str, Seconds]]:
    """How long each arm took, one mapping a group of the answer."""
    return [
        {arm: _arm_seconds([cell for cell in of_group if cell.arm == arm], places) for arm in group.facts}
        for group in answer.groups
        for of_group in [[cell for cell in cells if (cell.noise, cell.budget) == (group.noise, group.budget)]]
    ]


def _arm_seconds(cells: Sequence[Cell], places: Places) -> Seconds:
    choosing = training = 0.0
    for cell in cells:
        own = read_json(places.seconds(cell.name))
        shared = read_json(places.seconds(cell.pool)).get(scored_by(cell) or "", 0.0)
        choosing += own["choosing"] + shared
        training += own["training"]
    return Seconds(choosing / len(cells), training / len(cells))


def working_time(cells: Sequence[Cell], places: Places, workers: int) -> float:
    """Seconds that the pools and cells took, with so many workers; kills and pauses between them do not count."""
    pools = sum(read_json(places.seconds(name))[WHOLE] for name in pools_of(cells))
    return float(pools + sum(read_json(places.seconds(cell.name))[WHOLE] for cell in cells) / workers)


def print_answer(answer: Answer, cells: Sequence[Cell], places: Places, workers: int) -> None:
    """Print the tables, the conclusions and where the files are."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True, width=160)
    for table in tables_of(answer, read_seconds(answer, cells, places)):
        shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, title=table.title, title_justify="left")
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if number else "left", no_wrap=True)
        for row in table.rows:
            shown.add_row(*(cell.strip("*") for cell in row))
        console.print()
        console.print(shown)
        console.print(table.note)
    console.print()
    for sentence in conclusions(answer):
        console.print(sentence)
    minutes = working_time(cells, places, workers) / 60
    console.print(f"time         {minutes:.0f} min of work, {workers} cells at a time")
    console.print(f"answer       {places.results / TEXT}")
    console.print(f"report       {places.results / PAGE}")
    console.print(f"experiments  dvc exp show   (their names begin with {answer.name}-)")
