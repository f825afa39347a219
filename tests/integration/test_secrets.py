"""Passwords and tokens that a run is given stay where they were given: nothing prints, records or commits them."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.project import call, edit_params, environment, iterit, wait_for

SECRET = "canary"
GIVEN = (".dvc/config.local",)  # where the user has put one


@contextmanager
def serving(folder: Path, module: str, *arguments: str, health: str, **settings: str) -> Iterator[str]:
    """A server of the module on a free port of this machine; yields host and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", module, *arguments, "--port", place.partition(":")[2]]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **settings}
    with (folder / f"{module}.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env={**environment(), **quiet}, stdout=log, stderr=log, start_new_session=True
        )
    try:

        def answers() -> bool:
            with suppress(OSError), urllib.request.urlopen(f"http://{place}{health}", timeout=2):
                return True
            return False

        wait_for(answers, seconds=60)
        yield place
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def files_with(folder: Path, text: str) -> list[str]:
    """Paths below the folder whose bytes hold the text."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(path.relative_to(folder).as_posix() for path in paths if text.encode() in path.read_bytes())


def test_no_password_or_token_is_printed_or_recorded_anywhere(after_a_run: Path, tmp_path: Path) -> None:
    servers = tmp_path / "servers"
    servers.mkdir()
    login = f"user{SECRET}:p%40{SECRET}"
    call(after_a_run, "dvc", "remote", "add", "--local", "--default", "far", f"https://{login}@127.0.0.1:9/data")
    edit_params(after_a_run, {"gate": {"margin": 0.5}})
    prefect = ["--factory", "prefect.server.api.server:create_app", "--log-level", "error"]
    store = [
        "server",
        "--workers",
        "1",
        "--backend-store-uri",
        "sqlite:///store.db",
        "--artifacts-destination",
        "files",
    ]
    with (
        serving(servers, "uvicorn", *prefect, health="/api/health", PREFECT_HOME=str(servers)) as prefect_server,
        serving(servers, "mlflow", *store, health="/health") as mlflow_server,
    ):
        addresses: Mapping[str, str] = {
            "PREFECT_API_URL": f"http://{login}@{prefect_server}/api",
            "MLFLOW_TRACKING_URI": f"http://{login}@{mlflow_server}",
            "HF_TOKEN": f"hf_{SECRET}",
        }
        printed = iterit(after_a_run, "run", **addresses)
    assert "registered   iterit version 1" in printed
    assert "the data were not pushed" in printed
    printed += iterit(after_a_run, "audit", "checkpoint", "models:/iterit/7", expect=75, **addresses)
    assert SECRET not in printed
    assert files_with(servers, SECRET) == []
    assert [path for path in files_with(after_a_run, SECRET) if path not in GIVEN] == []


def test_a_new_store_is_readable_by_its_owner_only(after_a_run: Path) -> None:
    for name in ("mlflow.db", ".prefect"):
        assert stat.S_IMODE((after_a_run / name).stat().st_mode) & 0o077 == 0, name
