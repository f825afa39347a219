"""A Prefect server that ends with the process that started it.

When no server is configured, Prefect starts a temporary one by itself, which outlives a killed flow. This server ends
with the flow, and starts while the flow imports its libraries. Prefect's settings are in prefect.toml; DEFAULTS has
those that it cannot hold.
"""

from __future__ import annotations

import atexit
import http.client
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

from components.core.errors import Unreachable, UserError, without_password
from components.core.paths import SCRATCH
from components.core.process import die_with_parent, name_as_parent, relax_gc

STARTUP_SECONDS = 180  # of our own server: a first start creates Prefect's database, which takes long when busy
ANSWER_SECONDS = 30  # of a server that somebody else runs
LOOPBACK = "127.0.0.1"

DEFAULTS = {
    "PREFECT_LOGGING_FORMATTERS_STANDARD_DATEFMT": "%H:%M:%S",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s | %(levelname)-7s | %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": (
        "%(asctime)s | %(levelname)-7s | %(task_run_name)-14s | %(message)s"
    ),
}


LOG = SCRATCH / "prefect-server.log"
_server: list[subprocess.Popen[bytes]] = []  # ours, when this process has started one


def start_prefect_server() -> None:
    """Start a server and name it in PREFECT_API_URL, unless the user names one there.

    Call it before Prefect is imported, which reads the environment then.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    _bypass_proxies()
    if url := os.environ.get("PREFECT_API_URL"):
        os.environ["PREFECT_API_URL"] = api_url(url)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(port)],
            stdin=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, **name_as_parent()},
            start_new_session=True,  # Ctrl-C must not reach it before the flow has reported its end
        )
    _server.append(process)
    # exit handlers run in reverse order: Prefect, imported later, sends its last logs before the server stops
    atexit.register(_stop, process)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()


def wait_until_healthy() -> None:
    """Return once the server of PREFECT_API_URL answers.

    Raises Unreachable when it does not in time, UserError with the server's last words when ours has ended.
    """
    url = os.environ["PREFECT_API_URL"]
    deadline = time.monotonic() + (STARTUP_SECONDS if _server else ANSWER_SECONDS)
    while time.monotonic() < deadline:
        if _server and _server[0].poll() is not None:
            raise UserError(f"Prefect's server ended at its start: {_last_words()}; is PREFECT_HOME usable?")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310  the URL is Prefect's setting
                return
        except (OSError, ValueError, http.client.HTTPException):
            time.sleep(0.1)
    raise Unreachable(
        f"PREFECT_API_URL: no Prefect server answers at {without_password(url)}; start one with: prefect server start"
    )


def api_url(url: str) -> str:
    """The address of Prefect's API, also where the user names the server alone or ends it with a slash."""
    parts = urllib.parse.urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"PREFECT_API_URL: {without_password(url)}: expected an address such as http://127.0.0.1:4200/api"
        )
    return parts._replace(path=parts.path.rstrip("/") or "/api").geturl()


def _bypass_proxies() -> None:
    """Let no proxy of the environment be asked for this machine's own addresses."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join([*known, *(host for host in (LOOPBACK, "localhost") if host not in known)])


def _last_words() -> str:
    lines = [line for line in LOG.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"


def main() -> None:
    """Serve Prefect's API on the port that the command line names."""
    die_with_parent()
    relax_gc()
    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="error",
    )


if __name__ == "__main__":
    main()
