"""One Prefect task is one DVC stage: it runs if anything that it depends on has changed, and is logged line by line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from components.core.errors import TRY_LATER
from components.core.process import name_as_parent
from flows.dvc_worker import SEPARATOR

TAIL = 20  # lines of a failed stage that its state repeats


Ask = Callable[[dict[str, str], Callable[[str], None]], dict[str, Any]]


class StageError(Exception):
    """A stage ended with an error; the message is what it says is wrong, or else the end of what it printed."""

    def __init__(self, stage: str, exit_code: int | None, printed: Sequence[str], reason: str) -> None:
        mistakes = [line for line in printed if line.startswith("error: ")]
        super().__init__("\n".join(mistakes or [*printed, f"{stage}: {reason}"]))
        self.exit_code = exit_code
        self.lines = mistakes or [f"error: {stage}: {reason}"]


@contextmanager
def dvc_worker() -> Iterator[Ask]:
    """A DVC process (flows/dvc_worker.py) and the function that asks it; it and its stages end with the block.

    The function sends one request, hands every line that is printed meanwhile to its second argument, and returns
    the answer.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # dvc.yaml says `python`
    worker = subprocess.Popen(
        [sys.executable, "-m", "flows.dvc_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the flow alone, which then ends the worker's whole group
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **name_as_parent()},
        text=True,
        errors="replace",
    )

    def ask(request: dict[str, str], on_line: Callable[[str], None]) -> dict[str, Any]:
        assert worker.stdin and worker.stdout
        with suppress(BrokenPipeError):  # its output ends then, too
            worker.stdin.write(json.dumps(request) + "\n")
            worker.stdin.flush()
        for line in worker.stdout:
            printed, separator, answer = line.rstrip("\n").partition(SEPARATOR)
            if printed.strip():
                on_line(printed)
            if separator:
                reply: dict[str, Any] = json.loads(answer)
                return reply
        return {"error": f"the DVC process ended with code {worker.wait()}", "exit_code": None}

    try:
        yield ask
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _can_be_retried(task: Any, run: Any, state: State[Any]) -> bool:  # noqa: ARG001  Prefect's signature
    """Only something unreachable is worth another try; bad settings or too little memory stay what they are."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, StageError) and failure.exit_code == TRY_LATER


@task(
    task_run_name="{stage}",
    retries=2,
    retry_delay_seconds=[10, 60],
    retry_condition_fn=_can_be_retried,
    cache_policy=NO_CACHE,  # DVC is the only cache
)
def run_stage(stage: str, ask: Ask) -> State[Any]:
    """Bring one stage up to date; the state's name tells Ran, Restored (from DVC's run cache), Cached or Failed.

    The result of a failed state is the StageError: raised, it would fill the log with Prefect's own traceback.
    """
    logger = get_run_logger()
    lines: deque[str] = deque(maxlen=TAIL)

    def log(line: str) -> None:
        lines.append(line)
        logger.info("%s", line.removeprefix(f"{stage}: "))

    reply = ask({"do": "reproduce", "stage": stage}, log)
    if "error" in reply:
        error = StageError(stage, reply["exit_code"], lines, reply["error"])
        return Failed(message=str(error), data=error)
    return Completed(name=reply["came"].capitalize(), data=reply["came"])
