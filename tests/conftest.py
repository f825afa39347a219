"""Shared fixtures: a small model and a finished pipeline. Libraries are quiet, and the Hugging Face hub is off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from components.core.process import quiet_environment
from components.tracking import client, runs

quiet_environment()
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.support.finished_pipeline import make_finished_pipeline  # noqa: E402
from tests.support.project import FinishedRun, iterit, make_project  # noqa: E402
from tests.support.small_model import make_small_model  # noqa: E402  transformers reads the environment

SLOWEST = (
    "test_pipeline.py",
    "test_kills.py",
    "test_state.py",
    "test_finetune.py",
)  # most of the time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first: a worker runs a file as a whole, and the others would wait for it at the end."""
    items.sort(key=lambda item: item.path.name not in SLOWEST)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session, the same one in every worker."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def make_once(folder: Path, make: Callable[[], object]) -> Path:
    """Let the first worker make the folder; the others wait until it is complete."""
    complete = folder.with_name(f"{folder.name}.complete")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not complete.exists():
            make()
            complete.touch()
    return folder


@pytest.fixture(scope="session")
def small_model(shared: Path) -> Path:
    """A folder with a small Llama; tests must not change it."""
    folder = shared / "small_model"
    return make_once(folder, lambda: make_small_model(folder))


@pytest.fixture(scope="session")
def finished_run(shared: Path, small_model: Path) -> FinishedRun:
    """A project after its first `iterit run`; tests must not change it."""
    folder = shared / "finished_run"

    def make() -> None:
        folder.mkdir()
        make_project(folder / "project", small_model)
        (folder / "printed").write_text(iterit(folder / "project", "run"), encoding="utf-8")

    make_once(folder, make)
    return FinishedRun(folder / "project", (folder / "printed").read_text(encoding="utf-8"))


@pytest.fixture
def after_a_run(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the project after its first run, for a test to change."""
    folder = tmp_path / "project"
    shutil.copytree(finished_run.folder, folder, symlinks=True)
    return folder


@pytest.fixture(scope="session")
def finished_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder after two iterations, for copies: all files, dvc.lock, and an empty MLflow store."""
    place = tmp_path_factory.mktemp("finished")
    models = {key: make_small_model(place / key, seed=seed) for seed, key in enumerate(("base", "1", "2"))}
    return make_finished_pipeline(place / "project", models)


@pytest.fixture
def project(finished_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the finished pipeline, as the current folder and with an MLflow store of its own."""
    folder = tmp_path / "project"
    shutil.copytree(finished_pipeline, folder)
    monkeypatch.chdir(folder)
    for name in ("DVC_EXP_NAME", runs.RUN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    client.client.cache_clear()
    yield folder
    client.client.cache_clear()
