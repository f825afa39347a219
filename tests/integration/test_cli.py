"""The `iterit` command before anything runs: its mistakes are one line each, and nothing has been written then."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from components.core.errors import UserError
from flows.parameters import set_parameters
from flows.schedule import check_cron, parse_interval
from flows.workspace import check_workspace
from tests.support.project import call, iterit, make_project


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """A project in which nothing has run."""
    return make_project(tmp_path_factory.mktemp("fresh"), small_model)


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("select.ratio=1.5", "--set: select.ratio: 1.5 is neither a share (0 to 1] nor a whole number of records"),
        ("select.foo=1", "--set: select.foo: unknown key; known here: strategy, ratio"),
        ("selection.ratio=1", "--set selection.ratio=1: no block selection in params.yaml"),
        ("ratio", "--set ratio: expected KEY=VALUE"),
        ("select.ratio=[", "--set select.ratio=[: '[' is not a YAML value"),
        ("base_model.path=nowhere", "params.yaml: base_model.path: nowhere: no such file or folder"),
        ("ingest.files.incoming.path=no.json", "params.yaml: ingest.files.incoming.path: no.json: no such file"),
        ("finetune.deepspeed=zero9", "params.yaml: finetune.deepspeed: no conf/deepspeed/zero9.json; there are: zero0"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(fresh: Path, assignment: str, line: str) -> None:
    before = (fresh / "params.yaml").read_bytes()
    output = iterit(fresh, "run", "--set", assignment, expect=2)
    assert output.startswith(f"error: {line}")
    assert output.count("\n") == 1
    assert (fresh / "params.yaml").read_bytes() == before


def test_comments_stay_where_a_parameter_is_set(fresh: Path, tmp_path: Path) -> None:
    shutil.copytree(fresh, tmp_path / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "project")
        file = Path("params.yaml")
        file.write_text("# mine\n" + file.read_text())
        before = file.read_text()
        settings = set_parameters(["select.ratio=12", "finetune.seed=7"], check_workspace)
        assert (settings.select.ratio, settings.finetune.seed) == (12, 7)
        assert file.read_text() == before.replace("ratio: 10", "ratio: 12").replace("seed: 42", "seed: 7")


def test_outside_a_project_it_says_where_to_go(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "flows.cli", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: params.yaml: not found; run in the project's folder\n")


def test_without_git_it_says_how_to_get_it(fresh: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(fresh, folder, ignore=shutil.ignore_patterns(".git"))
    assert iterit(folder, "run", expect=2) == "error: .git: not found; DVC needs a git repository: git init\n"
    assert "is not a git repository" in call(folder, "dvc", "status", expect=255)  # else the check is not needed


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "serve: give either --cron or --interval"),
        (["--cron", "0 3 * * 1", "--interval", "6h"], "serve: give either --cron or --interval"),
        (["--cron", "at noon"], "--cron 'at noon'"),
        (["--interval", "soon"], "--interval soon: expected a whole number and a unit: 90s, 30m, 6h or 7d"),
    ],
)
def test_a_schedule_that_is_none_is_refused(fresh: Path, options: list[str], line: str) -> None:
    output = iterit(fresh, "serve", *options, expect=2)
    assert output.startswith(f"error: {line}")
    assert output.count("\n") == 1


def test_schedules_are_read_as_they_are_meant() -> None:
    assert parse_interval("90s") == timedelta(seconds=90)
    assert parse_interval("7d") == timedelta(days=7)
    assert check_cron("0 3 * * 1") == "0 3 * * 1"
    for none in ("0s", "1.5h", "h", ""):
        with pytest.raises(UserError):
            parse_interval(none)


def test_help_and_mistakes_import_nothing_heavy() -> None:
    """--help within a second: Prefect alone takes 1.5 s to import."""
    code = "import sys, flows.cli, flows.parameters, flows.workspace; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert "flows.workspace" in modules
    assert {"prefect", "torch", "mlflow", "dvc"}.isdisjoint(modules)
