"""A Prefect server that ends with the process that started it.

When no server is configured, Prefect starts a temporary one by itself, which outlives a killed flow. This server ends
with the flow, and starts while the flow imports its libraries. Prefect's settings are in prefect.toml; DEFAULTS has
those that it cannot hold.
"""

from __future__ import annotations

import atexit
import base64
import http.client
import logging
import os
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NoReturn

from components.core.errors import TRY_LATER, Unreachable, UserError, first_line
from components.core.paths import SCRATCH
from components.core.process import die_with_parent, name_as_parent, relax_gc

STARTUP_SECONDS = 180  # of our own server: a first start creates Prefect's database, which takes long when busy
LOST = "Prefect's server was lost during the run; what ran is kept, and running again goes on from there"
ANSWER_SECONDS = 30  # of a server that somebody else runs
LOOPBACK = "127.0.0.1"
AUTHENTICATION = "PREFECT_API_AUTH_STRING"  # Prefect's setting: USER:AUTHENTICATION for its server

DEFAULTS = {
    "PREFECT_LOGGING_FORMATTERS_STANDARD_DATEFMT": "%H:%M:%S",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s | %(levelname)-7s | %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": (
        "%(asctime)s | %(levelname)-7s | %(task_run_name)-14s | %(message)s"
    ),
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # else a line for each event that a lost server does not take
}


LOG = SCRATCH / "prefect-server.log"
_server: list[subprocess.Popen[bytes]] = []  # ours, when this process has started one


class ServerLostError(Exception):
    """Prefect's server was lost during a run."""


def start_prefect_server() -> None:
    """Start a server and name it in PREFECT_API_URL, unless the user names one there.

    Call it before Prefect is imported, which reads the environment then.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    _bypass_proxies()
    _check_home()
    if url := os.environ.get("PREFECT_API_URL"):
        os.environ["PREFECT_API_URL"] = api_url(url)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with open(LOG, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
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
    if _answers_within(STARTUP_SECONDS if _server else ANSWER_SECONDS):
        return
    if _has_ended():
        raise UserError(f"Prefect's server ended at its start: {_last_words()}; is PREFECT_HOME usable?")
    url = os.environ["PREFECT_API_URL"]
    raise Unreachable(f"PREFECT_API_URL: no Prefect server answers at {url}; start one with: prefect server start")


def require_server() -> None:
    """Raises ServerLostError when the server of PREFECT_API_URL, which has answered before, does not any more.

    Prefect itself would ask it for minutes, and then wait at the end of the process for what it could not send.
    """
    if not _answers_within(ANSWER_SECONDS):
        raise ServerLostError


def leave_without_server() -> NoReturn:
    """End this process with one line; a usual end would wait for minutes until Prefect gives up what it has to send."""
    sys.stdout.flush()
    print(f"error: {LOST}", file=sys.stderr, flush=True)
    os._exit(TRY_LATER)


def mute_losses() -> None:
    """Let Prefect print nothing for each log line and event that a lost server does not take: LOST is said once."""
    logging.raiseExceptions = False
    logging.getLogger("prefect.events.clients").setLevel(logging.CRITICAL)


def _answers_within(seconds: float) -> bool:
    """Whether the server answers in that time; False at once where it is ours and has ended."""
    request = urllib.request.Request(f"{os.environ['PREFECT_API_URL']}/health")  # noqa: S310  the URL is a setting
    if password := os.environ.get(AUTHENTICATION):
        request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not _has_ended():
        try:
            with urllib.request.urlopen(request, timeout=5):  # noqa: S310
                return True
        except (OSError, ValueError, http.client.HTTPException):
            time.sleep(0.1)
    return False


def _has_ended() -> bool:
    """Whether the server is ours and does not run any more."""
    return bool(_server) and _server[0].poll() is not None


def api_url(url: str) -> str:
    """The address of Prefect's API, also where the user names the server alone or ends it with a slash.

    A user and password in it are moved to AUTHENTICATION, because Prefect shows and records the address.
    """
    parts = urllib.parse.urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"PREFECT_API_URL: {url}: expected an address such as http://127.0.0.1:4200/api")
    userinfo, _, host = parts.netloc.rpartition("@")
    if userinfo:
        os.environ.setdefault(AUTHENTICATION, urllib.parse.unquote(userinfo))
    return parts._replace(netloc=host, path=parts.path.rstrip("/") or "/api").geturl()


def _check_home() -> None:
    """Raises UserError for a PREFECT_HOME that Prefect could not work in."""
    if not (given := os.environ.get("PREFECT_HOME")):
        return
    home = Path(given).expanduser()
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(f"PREFECT_HOME {home}: no folder can be there: {first_line(error)}") from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise UserError(f"PREFECT_HOME {home}: no file can be written there")


def _bypass_proxies() -> None:
    """Let no proxy of the environment be asked for this machine's own addresses."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join([*known, *(host for host in (LOOPBACK, "localhost") if host not in known)])


def _last_words() -> str:
    """The last exception that the server has printed, or else its last line."""
    lines = [line for line in LOG.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return (errors or lines or ["it printed nothing"])[-1].strip()


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
