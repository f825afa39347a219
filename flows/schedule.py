"""Retraining on a schedule: a Prefect deployment of the flow, kept by this process."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

from components.core.errors import UserError
from components.core.process import quiet_environment

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment


UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_interval(text: str) -> timedelta:
    """`90s`, `30m`, `6h` or `7d`; raises UserError for anything else."""
    match = re.fullmatch(r"([1-9]\d*)([smhd])", text.strip())
    if not match:
        raise UserError(f"--interval {text}: expected a whole number and a unit: 90s, 30m, 6h or 7d")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def check_cron(text: str) -> str:
    """The cron line; raises UserError when it is none."""
    from cronsim import CronSim, CronSimError

    try:
        CronSim(text, datetime.now(UTC))
    except CronSimError as error:
        raise UserError(f"--cron {text!r}: {error}; expected five fields such as '0 3 * * 1'") from None
    return text


def serve_schedule(cron: str | None, interval: str | None) -> None:
    """Keep the deployment `retrain/scheduled` until SIGTERM or Ctrl-C; one run at a time."""
    if (cron is None) == (interval is None):
        raise UserError("serve: give either --cron or --interval")
    if cron is not None:
        check_cron(cron)
    every = parse_interval(interval) if interval is not None else None

    from components.core.params import load_settings
    from flows.server import start_prefect_server, wait_until_healthy
    from flows.workspace import check_workspace

    check_workspace(load_settings())
    quiet_environment()
    start_prefect_server()

    from flows.retrain import retrain
    from flows.runner import keep_serving

    wait_until_healthy()
    # a coroutine only where an event loop runs
    keep_serving(cast("RunnerDeployment", retrain.to_deployment("scheduled", cron=cron, interval=every)))
