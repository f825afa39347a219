"""An experiment in a folder of its own works on the project's data, or refuses to begin."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.errors import UserError
from components.core.experiment import check_experiment

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a file in its source, and the folder of an experiment with the same, which is the current one."""
    for name in ("project", "experiment"):
        (tmp_path / name / "data/incoming/deep").mkdir(parents=True)
        (tmp_path / name / "data/incoming/deep/a.json").write_text("[]")
        shutil.copyfile(PROJECT / "params.yaml", tmp_path / name / "params.yaml")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    monkeypatch.chdir(tmp_path / "experiment")
    return tmp_path / "project"


def test_an_experiment_with_the_files_of_the_project_runs_and_is_looked_at_once(project: Path) -> None:
    (project / "data/incoming/.hidden").write_text("no data")
    check_experiment()
    (project / "data/incoming/b.json").write_text("[]")
    check_experiment()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda source: (source / "b.json").write_text("[]"), "data/incoming/b.json"),
        (lambda source: (source / "deep/a.json").write_text("[1]"), "data/incoming/deep/a.json"),
        (lambda source: (source / "deep/a.json").unlink(), "data/incoming/deep/a.json"),
        (lambda source: shutil.rmtree(source), "data/incoming differs"),
    ],
    ids=["more", "changed", "fewer", "none"],
)
def test_an_experiment_with_other_files_is_refused_with_what_makes_them_the_same(
    project: Path, change: object, named: str
) -> None:
    assert callable(change)
    change(project / "data/incoming")
    with pytest.raises(UserError, match=rf"files\.incoming\.path: data/incoming: .*{named}.*--copy-paths .*dvc add"):
        check_experiment()


def test_a_project_itself_is_never_compared_with_anything(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "data/incoming/b.json").write_text("[]")
    monkeypatch.chdir(project)
    check_experiment()
    monkeypatch.delenv("DVC_ROOT")
    check_experiment()
    assert not (project / ".iterit").exists()


def test_every_stage_of_an_experiment_looks_before_it_works(project: Path) -> None:
    (project / "data/incoming/b.json").write_text("[]")
    code = "from components.core.stage import stage\nwith stage('any'): print('worked')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: params.yaml: ingest.files.incoming.path: data/incoming: this experiment")
