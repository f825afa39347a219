"""Shared fixtures: a small model and a finished pipeline. Libraries are quiet, and the Hugging Face hub is off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.core.process import quiet_environment
from components.tracking import client, runs

quiet_environment()
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.support.finished_pipeline import make_finished_pipeline  # noqa: E402
from tests.support.small_model import make_small_model  # noqa: E402  the environment is set before transformers is imported

SLOWEST = ("test_pipeline.py", "test_finetune.py")  # more than half of the suite's time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first: a worker runs a file as a whole, and the others would wait for it at the end."""
    items.sort(key=lambda item: item.path.name not in SLOWEST)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Llama; tests must not change it."""
    return make_small_model(tmp_path_factory.mktemp("small_model"))


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
