"""The report's files and rows: one row per iteration that params.yaml names, the base model first."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from components import report
from components.core.errors import UserError
from components.core.files import read_json, write_csv, write_json
from components.core.params import load_settings
from components.core.paths import seconds_file
from components.data import tables
from components.data.records import Message, make_record, write_records
from flows.summary import WIDTH, summary_table
from tests.support.project import edit_params

PROJECT = Path(__file__).parents[2]
POOL = [
    make_record(source, [Message("user", "Say it."), Message("assistant", text)])
    for source, text in (("web", "one"), ("web", "two"), ("books", "three"))
]
METRICS, ITERATIONS = Path("metrics"), Path("data/iterations")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The metrics of a base model and of two iterations, of which the second made no step, and of a removed third."""
    shutil.copyfile(PROJECT / "params.yaml", tmp_path / "params.yaml")
    edit_params(tmp_path, {"iterations": {"1": {"parent": "base"}, "2": {"parent": "1"}}}, replace=True)
    for number, key in enumerate(("base", "1", "2", "3")):
        loss = 3.25 - number / 4
        interval = {"loss": loss, "loss_low": loss - 0.21, "loss_high": loss + 0.21}
        sources = {"web": {"records": 7, **interval}}
        evaluated = {**interval, "perplexity": 25.79, "mean_complexity": 0.5, "records": 7, "sources": sources}
        write_json(tmp_path / f"metrics/evaluate/{key}.json", evaluated)
    for key in ("1", "2", "3"):
        write_json(tmp_path / f"metrics/score/{key}.json", {"records": 40, "mean_complexity": 0.123456})
        write_json(tmp_path / f"metrics/select/{key}.json", {"selected": 2})
        place = tmp_path / "data/iterations" / key
        losses = {"1": ("2.5", "2.0", "2.0")}.get(key, ())
        steps = [{"step": step, "iteration": key, "loss": loss} for step, loss in enumerate(losses, 1)]
        write_csv(place / "steps.csv", report.STEPS, [{**row, "learning_rate": 1e-05} for row in steps])
        histogram = {"iteration": key, "complexity": 0.35, "candidates": 40, "selected": 2}
        write_csv(place / "complexity.csv", report.COMPLEXITY, [histogram])
        _write_tables(place, picked={"1": (0, 1), "2": (1, 2)}.get(key, ()))
    write_records(tmp_path / "data/pool.parquet", POOL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write_tables(place: Path, picked: tuple[int, ...]) -> None:
    """Scores of the pool, in which the record that is picked last is the hardest, and the selection."""
    scores = [
        {"id": record.id, "response_tokens": 5 << number, "complexity": 0.5 + (0.1 if number in picked[1:] else 0.0)}
        for number, record in enumerate(POOL)
    ]
    tables.write(place / "scores.parquet", pa.Table.from_pylist(scores, tables.SCORES), tables.SCORES)
    selection = [
        {"id": record.id, "status": "selected" if number in picked else "eligible"}
        for number, record in enumerate(POOL)
    ]
    tables.write(place / "selection.parquet", pa.Table.from_pylist(selection, tables.SELECTION), tables.SELECTION)


def rows() -> list[report.IterationRow]:
    return report.iteration_rows(load_settings(), METRICS, ITERATIONS)


def write() -> dict[str, Path]:
    """The CSV files, by the names of Plots."""
    files = {field.name: Path(f"plots/{field.name}.csv") for field in fields(report.Plots)}
    inputs = report.Inputs(METRICS, ITERATIONS, Path("data/pool.parquet"))
    report.write_report(load_settings(), inputs, report.Plots(**files))
    return files


def test_the_csv_files_have_the_iterations_of_params_and_nothing_else() -> None:
    files = write()
    assert files["series"].read_bytes() == (
        b"iteration,scored,selected,mean_complexity,training_loss,holdout_loss,perplexity,holdout_complexity\n"
        b"1,40,2,0.123456,2.166667,3.0,25.79,0.5\n"
        b"2,40,2,0.123456,,2.75,25.79,0.5\n"
    )
    assert files["holdout"].read_bytes() == (
        b"iteration,holdout_loss,perplexity,holdout_complexity\n0,3.25,25.79,0.5\n1,3.0,25.79,0.5\n2,2.75,25.79,0.5\n"
    )
    assert files["steps"].read_bytes() == (
        b"step,iteration,loss,learning_rate,gradient_norm\n1,1,2.5,1e-05,\n2,1,2.0,1e-05,\n3,1,2.0,1e-05,\n"
    )
    assert files["complexity"].read_bytes() == (b"iteration,complexity,candidates,selected\n1,0.35,40,2\n2,0.35,40,2\n")


def test_the_csv_files_show_how_the_picks_change_and_what_they_are_made_of() -> None:
    files = write()
    assert files["holdout_sources"].read_text().splitlines() == [
        "iteration,source,records,loss,loss_low,loss_high",
        "0,web,7,3.25,3.04,3.46",
        "1,web,7,3.0,2.79,3.21",
        "2,web,7,2.75,2.54,2.96",
    ]
    assert files["picks"].read_text() == "iteration,selected,kept,new,distinct\n1,2,0,2,2\n2,2,1,1,3\n"
    assert files["overlap"].read_text() == "iteration,other,shared,share\n1,1,2,1.0\n1,2,1,0.5\n2,1,1,0.5\n2,2,2,1.0\n"
    assert files["hard"].read_text() == "iteration,records,hard,newly_hard,newly_hard_share\n2,3,2,1,0.5\n"
    assert (
        files["sources"].read_text()
        == "iteration,source,pool,selected\n1,web,2,2\n1,books,1,0\n2,web,2,1\n2,books,1,1\n"
    )
    assert files["lengths"].read_text().splitlines() == [
        "iteration,tokens,candidates,selected",
        *("1,4,1,1", "1,8,1,1", "1,16,1,0"),
        *("2,4,1,0", "2,8,1,1", "2,16,1,1"),
    ]


def test_the_base_model_is_iteration_0_without_selection_and_training() -> None:
    base, *iterations = rows()
    assert (base.iteration, base.holdout_loss) == (0, 3.25)
    assert [base.scored, base.selected, base.mean_complexity, base.training_loss] == [None] * 4
    assert [row.iteration for row in iterations] == [1, 2]


def test_an_iteration_took_what_its_stages_took_when_all_of_them_have_run_here() -> None:
    for name in ("score", "select", "finetune"):
        write_json(seconds_file(f"{name}@1"), {"seconds": 1.26})
    assert [row.seconds for row in rows()] == [None, None, None]
    write_json(seconds_file("evaluate@1"), {"seconds": 2.0})
    assert [row.seconds for row in rows()] == [None, 5.8, None]


def test_the_holdout_loss_is_shown_with_half_of_its_interval_in_the_columns_of_the_summary() -> None:
    console = Console(width=WIDTH)
    with console.capture() as captured:
        console.print(summary_table([replace(row, scored=100_000, seconds=100_000.0) for row in rows()]))
    lines = captured.get().splitlines()
    assert not [line for line in lines if "…" in line]  # a cell was cut off
    assert "3.2500 ± 0.21" in lines[-3]
    with console.capture() as captured:  # one record has no interval
        console.print(summary_table([replace(rows()[0], holdout_half_width=None)]))
    assert "±" not in captured.get()


def test_the_target_loss_is_a_column_of_the_summary_where_there_is_one() -> None:
    def printed() -> str:
        console = Console(width=WIDTH)
        with console.capture() as capture:
            console.print(summary_table(rows()))
        return capture.get()

    assert "target" not in printed()
    for key in ("base", "1", "2"):
        path = METRICS / f"evaluate/{key}.json"
        target = {"loss": 1.5, "loss_low": 1.25, "loss_high": 1.75}
        write_json(path, {**read_json(path), "target": target})
    shown = printed()
    assert shown.count("1.5000 ± 0.25") == 3
    assert all(len(line) <= WIDTH for line in shown.splitlines())


def test_missing_metrics_are_reported_by_file() -> None:
    Path("metrics/select/2.json").unlink()
    with pytest.raises(UserError, match=r"metrics/select/2\.json: not found; `dvc repro` makes it"):
        rows()
