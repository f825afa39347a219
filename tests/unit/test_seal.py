"""A run's end commits its own files, and nothing that somebody else was about to."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from components.core.files import write_json
from components.provenance.statements import BUNDLE
from flows.seal import commit_results, tag_version

AUTHOR = "iterit <iterit@localhost>"
FACTS = {"model": "my model", "version": "3", "checkpoint": "c" * 64, "run_id": "r" * 32}


def git(*arguments: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet", "--initial-branch", "main")
    for name in ("dvc.lock", "params.yaml", "code.py", "staged.py"):
        Path(name).write_text("first\n")
    write_json(Path("metrics/register.json"), {"version": 1})
    Path(".gitignore").write_text("/.iterit/\n")
    Path(".iterit").mkdir()
    git("add", "--all")
    git("commit", "--quiet", "--message", "first")
    return tmp_path


def test_only_the_results_are_committed_and_what_is_staged_stays_staged() -> None:
    Path("dvc.lock").write_text("second\n")
    Path(BUNDLE).write_text("{}\n")
    Path("code.py").write_text("changed\n")
    Path("staged.py").write_text("changed\n")
    git("add", "staged.py")
    commit = commit_results("Retrain: my model version 3", AUTHOR)
    assert commit == git("rev-parse", "HEAD")
    assert git("log", "-1", "--format=%an <%ae> %s") == f"{AUTHOR} Retrain: my model version 3"
    assert git("show", "--format=", "--name-only", "HEAD").split() == ["dvc.lock", BUNDLE]
    assert git("status", "--porcelain").splitlines() == ["M code.py", "M  staged.py"]
    assert git("symbolic-ref", "HEAD") == "refs/heads/main"


def test_nothing_new_makes_no_commit() -> None:
    before = git("rev-parse", "HEAD")
    assert commit_results("Retrain", AUTHOR) is None
    assert git("rev-parse", "HEAD") == before


def test_the_tag_tells_what_git_does_not_know() -> None:
    assert tag_version(FACTS, "f" * 36, AUTHOR) == "iterit/my-model/v3"
    message = json.loads(git("tag", "--list", "--format=%(contents)", "iterit/my-model/v3"))
    assert message["checkpoint"] == "c" * 64
    assert message["mlflow_run"] == "r" * 32
    assert message["prefect_flow_run"] == "f" * 36
    assert len(message["dvc_lock"]) == 64
