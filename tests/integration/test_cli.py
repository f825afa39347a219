"""The `iterit` command before anything runs: a mistake is one line, and changes nothing."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.project import SOURCE, call, iterit, make_project


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """A project in which nothing has run."""
    return make_project(tmp_path_factory.mktemp("fresh"), small_model)


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("select.ratio=1.5", "--set: select.ratio: 1.5 is neither a share (0 to 1] nor a whole number of records"),
        ("finetune.deepspeed=zero9", "params.yaml: finetune.deepspeed: no conf/deepspeed/zero9.json; there are: zero0"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(fresh: Path, assignment: str, line: str) -> None:
    before = (fresh / "params.yaml").read_bytes()
    output = iterit(fresh, "run", "--set", assignment, expect=2)
    assert output.startswith(f"error: {line}")
    assert output.count("\n") == 1
    assert (fresh / "params.yaml").read_bytes() == before


def test_outside_a_project_the_remedy_is_to_enter_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "flows.cli", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: params.yaml: not found; run in the project's folder\n")


def test_without_git_the_remedy_is_git_init(fresh: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(fresh, folder, ignore=shutil.ignore_patterns(".git"))
    assert iterit(folder, "run", expect=2) == "error: .git: not found; DVC needs a git repository: git init\n"
    assert "is not a git repository" in call(folder, "dvc", "status", expect=255)  # otherwise the check is not needed


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "serve: give either --cron or --interval"),
        (["--cron", "at noon"], "--cron 'at noon'"),
        (["--interval", "soon"], "--interval soon: expected a whole number and a unit: 90s, 30m, 6h or 7d"),
    ],
)
def test_a_mistake_in_the_schedule_is_one_line(fresh: Path, options: list[str], line: str) -> None:
    output = iterit(fresh, "serve", *options, expect=2)
    assert output.startswith(f"error: {line}")
    assert output.count("\n") == 1


def test_help_and_mistakes_import_nothing_heavy() -> None:
    """Prefect, PyTorch, MLflow and DVC take seconds to import."""
    code = """if True:
        import sys
        from flows.cli import main
        for arguments in (["--help"], ["--version"], ["run", "--help"], ["serve"]):
            try:
                main(arguments)
            except SystemExit:
                pass
        import flows.foreground
        print(*sys.modules)
    """
    help_and_modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "Retrain an instruction-tuned language model" in help_and_modules
    modules = help_and_modules.splitlines()[-1].split()
    assert {"flows.schedule", "flows.foreground", "flows.workspace"} <= set(modules)
    assert {"prefect", "torch", "mlflow", "dvc"}.isdisjoint(modules)


def test_the_modules_of_flows_import_each_other_in_one_direction() -> None:
    """Imports inside functions count: cli, retrain and schedule once formed a circle of them."""
    graph = {}
    for file in (SOURCE / "flows").glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        graph[f"flows.{file.stem}"] = {node.module for node in nodes if node.module}
    assert {"flows.retrain", "flows.schedule", "flows.foreground"} <= graph["flows.cli"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules
