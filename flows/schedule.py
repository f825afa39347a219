"""Retraining on a schedule: a Prefect deployment of the flow, served by this process."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

from components.core.errors import UserError
from components.core.params import load_settings
from components.core.process import quiet_environment
from flows.server import start_prefect_server, wait_until_healthy
from flows.workspace import check_workspace

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_interval(text: str) -> timedelta:
    """The length of `90s`, `30m`, `6h` or `7d`. Raises UserError for anything else."""
    match = re.fullmatch(r"([1-9]\d*)([smhd])", text.strip())
    if not match:
        raise UserError(f"--interval {text}: expected a whole number and a unit: 90s, 30m, 6h or 7d")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def check_cron(text: str) -> str:
    """The cron line, unchanged. Raises UserError when it is not one of five fields, or never comes due."""
    from cronsim import CronSim, CronSimError

    try:
        if len(text.split()) != 5:
            raise CronSimError(f"{len(text.split())} fields")
        next(CronSim(text, datetime.now(UTC)))
    except CronSimError as error:
        raise UserError(f"--cron {text!r}: {error}; expected five fields such as '0 3 * * 1'") from None
    except StopIteration:
        raise UserError(f"--cron {text!r}: never comes due; expected five fields such as '0 3 * * 1'") from None
    return text


def serve_schedule(cron: str | None, interval: str | None) -> None:
    """Serve the deployment `retrain/scheduled` until SIGTERM or Ctrl-C, one flow run at a time.

    Exactly one of `cron` and `interval` must be given. Raises UserError for a mistake in them or in the project.
    """
    if (cron is None) == (interval is None):
        raise UserError("serve: give either --cron or --interval")
    if cron is not None:
        check_cron(cron)
    every = parse_interval(interval) if interval is not None else None
    check_workspace(load_settings())
    quiet_environment()
    start_prefect_server()

    # Prefect reads its settings when it is imported
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    from flows.retrain import retrain
    from flows.runner import keep_serving

    wait_until_healthy()
    try:  # the parser that will run the line has the last word: it knows less than the first
        if cron is not None:
            CronSchedule(cron=cron)
    except ValidationError:
        raise UserError(f"--cron {cron!r}: Prefect cannot run it; expected five fields such as '0 3 * * 1'") from None
    print(f"serving: cron {cron!r} in UTC" if cron else f"serving: every {interval}", flush=True)
    # it is a coroutine only inside an event loop
    keep_serving(cast("RunnerDeployment", retrain.to_deployment("scheduled", cron=cron, interval=every)))
