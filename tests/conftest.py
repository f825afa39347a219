"""Shared fixtures: a small model for every test, quiet libraries, and no hub."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from components.core.process import quiet_environment

quiet_environment()
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.support.finished_pipeline import make_finished_pipeline  # noqa: E402
from tests.support.small_model import make_small_model  # noqa: E402  the environment must be quiet before transformers loads

SLOWEST = ("test_pipeline.py", "test_finetune.py")  # more than half of the time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first: a file goes to one worker as a whole, and none shall be alone at the end."""
    items.sort(key=lambda item: item.path.name not in SLOWEST)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Llama, read-only by convention."""
    return make_small_model(tmp_path_factory.mktemp("small_model"))


@pytest.fixture(scope="session")
def finished_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder after two iterations, to be copied: all files, dvc.lock, and an empty MLflow store."""
    place = tmp_path_factory.mktemp("finished")
    models = {key: make_small_model(place / key, seed=seed) for seed, key in enumerate(("base", "1", "2"))}
    return make_finished_pipeline(place / "project", models)
