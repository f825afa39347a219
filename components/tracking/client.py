"""TODO"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from components.core.errors import Unreachable
from components.core.process import quiet_environment

if TYPE_CHECKING:
    from mlflow import MlflowClient


DEFAULTS = {
    "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
    # a server that is away is noticed in seconds: MLflow's own defaults make that 7 tries of up to 2 minutes each
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


LOCAL_PAGE = "http://127.0.0.1:5000"  # where `mlflow server` listens


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULTS["MLFLOW_TRACKING_URI"]


@contextmanager
def answering() -> Iterator[None]:
    """Turn whatever MLflow raises when it cannot do its work into one line that names the server and the way on."""
    load_library()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client()  # opens the store
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unreachable(
            f"MLFLOW_TRACKING_URI {tracking_uri()}: {reason[:200]}; the training is kept, "
            "`dvc repro register` (or `iterit run`) records it when MLflow answers again"
        ) from error


@functools.cache
def client() -> MlflowClient:
    load_library()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri())


def load_library() -> None:
    """Import MLflow, made quiet; it takes 2 s."""
    quiet_environment()
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):  # "Creating initial MLflow database tables..." and a line a migration
        logging.getLogger(name).setLevel(logging.WARNING)
    import mlflow  # noqa: F401

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its import sets its own level
