"""Prefect's runner of scheduled flow runs, changed to end as quietly on SIGTERM as on Ctrl-C."""

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
    """A runner that takes SIGTERM as Ctrl-C."""

    def handle_sigterm(self, *_args: Any, **_kwargs: Any) -> None:
        # Prefect's own handler leaves a coroutine that is never awaited, and sometimes a traceback
        threading.Thread(target=_interrupt, daemon=True, name="interrupt").start()


def _interrupt() -> None:
    """Send SIGINT until the process ends: one that arrives as a flow run ends is lost."""
    while True:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(SECONDS_BETWEEN_INTERRUPTS)


def keep_serving(deployment: RunnerDeployment) -> None:
    """Run the deployment whenever it is due, one run at a time, until SIGTERM or Ctrl-C."""
    # a process that a shell starts in the background ignores SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runner = QuietRunner(limit=1)
    runner.add_deployment(deployment)
    with suppress(KeyboardInterrupt):
        asyncio.run(runner.start())
