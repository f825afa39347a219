"""A Prefect server that ends with whoever started it.

Prefect starts a temporary server by itself when none is configured, but leaves it behind when the flow is killed.
This one ends with it, and boots while the flow's own imports go on. prefect.toml has Prefect's settings; those that
it cannot have are DEFAULTS.
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

STARTUP_SECONDS = 180  # 7 to 20 on two cores; a first start on a busy machine has taken longer


DEFAULTS = {
    "PREFECT_LOGGING_FORMATTERS_STANDARD_DATEFMT": "%H:%M:%S",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s | %(levelname)-7s | %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": (
        "%(asctime)s | %(levelname)-7s | %(task_run_name)-14s | %(message)s"
    ),
}


def start_prefect_server() -> None:
    """From here on PREFECT_API_URL names a server: the user's, or one that ends with this process.

    Call it before Prefect is imported: Prefect reads the environment then.
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
        start_new_session=True,  # Ctrl-C must not reach it before the flow has said how it ended
    )
    # what is registered first runs last: Prefect still sends its last logs and states at exit
    atexit.register(_stop, process)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()


def wait_until_healthy() -> None:
    """Block until the server of PREFECT_API_URL answers; raises Unreachable after three minutes."""
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
