"""Prefect's runner of scheduled flow runs, made to end as quietly on SIGTERM as on Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner

SECONDS_BETWEEN_INTERRUPTS = 3.0


class QuietRunner(Runner):
    def handle_sigterm(self, *_args: Any, **_kwargs: Any) -> None:
        # Prefect's own way leaves a coroutine that nobody awaits, and now and then a traceback
        threading.Thread(target=_interrupt, daemon=True, name="interrupt").start()


def _interrupt() -> None:
    """As Ctrl-C, until it is heard: the first one is lost where it meets a flow run that is just ending."""
    while True:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(SECONDS_BETWEEN_INTERRUPTS)


def keep_serving(deployment: RunnerDeployment) -> None:
    """Run the deployment when it is due, one run at a time, until SIGTERM or Ctrl-C."""
    # a shell starts what it puts into the background with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runner = QuietRunner(limit=1)
    runner.add_deployment(deployment)
    with suppress(KeyboardInterrupt):
        asyncio.run(runner.start())
