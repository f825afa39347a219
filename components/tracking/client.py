"""The connection to MLflow: which tracking server, with which timeouts, and one error when it does not answer."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.errors import Unreachable, UserError, first_line, without_password
from components.core.process import quiet_environment

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULTS = {
    # MLflow would try an unreachable server 7 times, for up to 2 minutes each; this gives up in 30 s
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "12",
}

TRY_AGAIN = (408, 425, 429)  # HTTP: request time-out, too early, too many requests
LOCAL_PAGE = "http://127.0.0.1:5000"  # where `mlflow server` listens by default


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the SQLite store in the project folder."""
    folder = project_folder()
    default = f"sqlite:///{'' if folder == Path() else f'{folder}/'}mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def project_folder() -> Path:
    """The folder that keeps MLflow's records: the current one, or that of the project whose experiment this is.

    DVC runs queued experiments in a temporary folder, which vanishes with its files, and names the project in DVC_ROOT.
    """
    root = Path(os.environ.get("DVC_ROOT", "."))
    return Path() if root.resolve() == Path.cwd() else root


@contextmanager
def explain_unreachable() -> Iterator[None]:
    """Turn what MLflow raises in the block into one line with the server, the reason and the remedy.

    UserError for what the server refuses (HTTP's 4xx), which it would refuse again; otherwise Unreachable.
    """
    import_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client()  # opens the store
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        line = f"MLFLOW_TRACKING_URI {without_password(tracking_uri())}: {without_password(first_line(error))[:200]}"
        status: int | None = getattr(error, "get_http_status_code", lambda: None)()
        if status is not None and 400 <= status < 500 and status not in TRY_AGAIN:
            raise UserError(f"{line}; the training is kept, `iterit run` records it once that is mended") from error
        raise Unreachable(
            f"{line}; the training is kept, `dvc repro register` (or `iterit run`) records it when MLflow answers again"
        ) from error


@functools.cache
def client() -> MlflowClient:
    """MLflow's client for the tracking server and the model registry; one for the process."""
    import_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri())


def import_mlflow() -> None:
    """Import MLflow with this project's defaults and without its log lines."""
    quiet_environment()
    for name, value in {**DEFAULTS, "MLFLOW_TRACKING_URI": tracking_uri()}.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):  # they log the creation of the store and each migration
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # a retry is no news; what comes of it is reported
    import mlflow  # noqa: F401

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its import sets its own level
