"""A Prefect server that ends with the process that started it.

When no server is configured, Prefect starts a temporary one by itself, which outlives a killed flow. This server ends
with the flow, and starts while the flow imports its libraries. Prefect's settings are in prefect.toml; DEFAULTS has
those that it cannot hold.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from components.core.errors import Unreachable
from components.core.process import die_with_parent, name_as_parent, relax_gc

STARTUP_SECONDS = 180  # a first start creates Prefect's database, which takes long on a busy machine

DEFAULTS = {
    "PREFECT_LOGGING_FORMATTERS_STANDARD_DATEFMT": "%H:%M:%S",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s | %(levelname)-7s | %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": (
        "%(asctime)s | %(levelname)-7s | %(task_run_name)-14s | %(message)s"
    ),
}


def start_prefect_server() -> None:
    """Start a server and name it in PREFECT_API_URL, unless the user names one there.

    Call it before Prefect is imported, which reads the environment then.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if os.environ.get("PREFECT_API_URL"):
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.server", str(port)],
        stdin=subprocess.DEVNULL,
        env={**os.environ, **name_as_parent()},
        start_new_session=True,  # Ctrl-C must not reach it before the flow has reported its end
    )
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
    """Return once the server of PREFECT_API_URL answers. Raises Unreachable after STARTUP_SECONDS."""
    url = os.environ["PREFECT_API_URL"]
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310  the URL is Prefect's setting
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise Unreachable(f"PREFECT_API_URL: no Prefect server answers at {url}; start one with: prefect server start")


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
