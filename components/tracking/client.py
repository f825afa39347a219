"""The connection to MLflow: which tracking server, with which timeouts, and one error when it does not answer."""

from __future__ import annotations

import functools
import logging
import os
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.errors import Unreachable, UserError, first_line
from components.core.paths import project_folder
from components.core.process import quiet_environment

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULTS = {
    # MLflow would try an unreachable server 7 times, for up to 2 minutes each; this gives up in 30 s
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "12",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the flow shows the run's page
}

TRY_AGAIN = (408, 425, 429)  # HTTP: request time-out, too early, too many requests
SQLITE = "sqlite:///"  # how the address of a store in a file begins
LOCAL_PAGE = "http://127.0.0.1:5000"  # where `mlflow server` listens by default


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the SQLite store in the project folder.

    A server's user and password are moved to the variables that MLflow has for them, so that the address can be shown
    and recorded; a database's stay in it.
    """
    folder = project_folder()
    default = f"{SQLITE}{'' if folder == Path() else f'{folder}/'}mlflow.db"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    if not (parts.username and parts.password):
        raise UserError(f"MLFLOW_TRACKING_URI {uri}: expected USER:PASSWORD before the @")
    if "MLFLOW_TRACKING_TOKEN" not in os.environ:
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", urllib.parse.unquote(parts.username))
        os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", urllib.parse.unquote(parts.password))
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    os.environ["MLFLOW_TRACKING_URI"] = shown
    return shown


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
        line = f"MLFLOW_TRACKING_URI {tracking_uri()}: {first_line(error)[:200]}"
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

    uri = tracking_uri()
    if uri.startswith(SQLITE):
        with suppress(OSError):  # MLflow's own error says more
            Path(uri.removeprefix(SQLITE)).touch(mode=0o600)  # a new store is its owner's; an old one keeps its mode
    return MlflowClient(uri)


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
