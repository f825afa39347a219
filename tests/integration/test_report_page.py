"""report.html of a real run: made by the flow and by hand, whole or with files missing, read by a browser."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import altair
import pytest

from components.core.files import read_json
from components.core.params import load_settings
from components.data.records import Message, Record, read_records, write_records
from components.pages.run.page import run_page
from components.promotion.gate import Decision, Difference
from components.promotion.registered import Registered, read_registered
from tests.support.browser import CHROMIUM, assert_drawn
from tests.support.html import assert_self_contained
from tests.support.project import FinishedRun, iterit

HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(1)> \x1b[31m red"
SMALL_FILES = ("params.yaml", "dvc.lock", "metrics", "plots", "samples", "provenance")
TABLES = ("data/pool.parquet", "data/rejected.parquet", "data/evaluations", "data/iterations", ".iterit/seconds")


@pytest.fixture
def folder(finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page is made from, of a finished run; every record of the pool and every sample is hostile."""
    for name in (*SMALL_FILES, *TABLES, ".iterit/registered.json", "report.html"):
        source, target = finished_run.folder / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def known_version() -> Registered:
    registered = read_registered(read_json(Path("metrics/register.json"))["checkpoint"])
    assert registered is not None
    return registered


def compared(registered: Registered) -> Registered:
    """The version with a champion that it was compared with."""
    difference = Difference(0.02, -0.005, -0.01, 0.05, 24, 0.95, 0.01, 0.04)
    gate = Decision(False, "+0.0200", {"loss": 2.9}, {"loss": 2.92}, "1", False, {"loss": difference})
    return replace(registered, version="2", gate=gate)


def test_a_run_ends_with_the_page_and_mlflow_has_it(finished_run: FinishedRun) -> None:
    folder = finished_run.folder
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert_self_contained(page)
    assert "Not here" not in page
    assert "iterit version 1 is the champion: there was no champion." in page
    assert "git checkout iterit/iterit/v1" in page
    assert "report       report.html" in finished_run.printed
    with sqlite3.connect(folder / "mlflow.db") as database:
        run = "select artifact_uri from runs where name not like '%@%' and run_uuid in"
        parents = "(select value from tags where key = 'mlflow.parentRunId')"
        (uri,) = database.execute(f"{run} {parents}").fetchone()
    # not compared byte for byte: a copy of the project, made for another test, has the same MLflow run and its place
    logged = (folder / uri.removeprefix("file://") / "report.html").read_text(encoding="utf-8")
    assert_self_contained(logged)
    assert "iterit version 1 is the champion: there was no champion." in logged


def test_by_hand_the_same_files_give_the_same_page(after_a_run: Path) -> None:
    made = (after_a_run / "report.html").read_bytes()
    assert iterit(after_a_run, "report", "--output", "again.html").strip() == "again.html"
    assert (after_a_run / "again.html").read_bytes() == made


def test_every_chart_of_the_page_is_valid(folder: Path) -> None:
    specs = json.loads(assert_self_contained((folder / "report.html").read_text(encoding="utf-8")).scripts[0])
    assert len(specs) >= 10
    for spec in specs:
        altair.Chart.from_dict(spec)


def test_a_clone_with_git_s_files_alone_names_what_is_missing(folder: Path) -> None:
    for name in (*TABLES, "samples", "provenance", ".iterit"):
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    page = run_page(load_settings(), None, None)
    seen = assert_self_contained(page)
    for path in ("data/evaluations/base.parquet", "data/rejected.parquet", "samples/base.json"):
        assert f"Not here: {path}: not found; `dvc repro` makes it, `dvc pull` fetches it" in seen.text
    assert "What the gate decided is not known in this folder" in seen.text
    assert "How long the stages took is not known here" in seen.text
    for title in ("Loss of each optimizer step", "Loss on the holdout", "Newly hard records", "tokens trained"):
        assert title in seen.text


def test_nothing_of_a_run_is_needed_for_a_page(folder: Path) -> None:
    for name in ("metrics", "plots", "dvc.lock"):
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    page = run_page(load_settings(), None, None)
    assert "Not here: metrics/evaluate/1.json: not found" in assert_self_contained(page).text


def make_hostile(folder: Path) -> None:
    """Every record of the pool and every sample gets a text that would do harm if it were taken for markup."""

    def spoil(record: Record) -> Record:
        return replace(record, messages=(Message("user", HOSTILE), Message("assistant", HOSTILE)))

    write_records(
        folder / "data/pool.parquet", [spoil(record) for record in read_records(folder / "data/pool.parquet")]
    )
    for file in (folder / "samples").glob("*.json"):
        samples = read_json(file)
        for sample in samples["samples"]:
            sample |= dict.fromkeys(("prompt", "reference", "generated"), HOSTILE)
        file.write_text(json.dumps(samples))


def test_records_are_text_whatever_they_hold(folder: Path) -> None:
    make_hostile(folder)
    page = run_page(load_settings(), known_version(), None)
    seen = assert_self_contained(page)
    assert seen.tags.count("script") == 3
    shown = HOSTILE.replace("\x1b", "\\x1b")
    assert seen.text.count(shown) >= 2 * 8 + 4
    assert "\x1b" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_browser_draws_every_chart_and_asks_for_nothing(folder: Path) -> None:
    make_hostile(folder)
    page = folder / "page.html"
    page.write_text(run_page(load_settings(), compared(known_version()), None), encoding="utf-8")
    assert_drawn(page)
