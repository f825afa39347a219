"""One Prefect task is one DVC stage: it runs when something it depends on has changed, and is logged line by line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True, slots=True)
class Answer:
    """The DVC process's answer to a request."""

    changed: Sequence[str] = ()
    """Answer to `status`: the stages that are not up to date."""
    came: str = ""
    """Answer to `reproduce`: `cached`, `restored` or `ran`."""
    error: str | None = None
    """The reason, when DVC or the stage failed."""
    exit_code: int | None = None
    """The failed stage's, where there is one."""


Ask = Callable[[dict[str, str], Callable[[str], None]], Answer]


class StageError(Exception):
    """A stage failed. The message holds the errors that it printed, or else its last lines and the reason."""

    def __init__(self, stage: str, exit_code: int | None, printed: Sequence[str], reason: str) -> None:
        mistakes = [line for line in printed if line.startswith("error: ")]
        super().__init__("\n".join(mistakes or [*printed, f"{stage}: {reason}"]))
        self.exit_code = exit_code
        self.lines = mistakes or [f"error: {stage}: {reason}"]


@contextmanager
def dvc_worker() -> Iterator[Ask]:
    """Start a DVC process (flows/dvc_worker.py) and yield the function that asks it; the block's end kills its group.

    The function sends one request, passes every line printed meanwhile to its second argument, and returns the answer.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # dvc.yaml starts `python`
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
    try:
        yield partial(_ask, worker)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _ask(worker: subprocess.Popen[str], request: dict[str, str], on_line: Callable[[str], None]) -> Answer:
    assert worker.stdin and worker.stdout
    with suppress(BrokenPipeError):  # then its output has ended, too
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
    for line in worker.stdout:
        printed, separator, answer = line.rstrip("\n").partition(SEPARATOR)
        if printed.strip():
            on_line(printed)
        if separator:
            return Answer(**json.loads(answer))
    return Answer(error=f"the DVC process ended with code {worker.wait()}")


def _can_be_retried(task: Any, run: Any, state: State[Any]) -> bool:  # noqa: ARG001  Prefect's signature
    """Whether something did not answer; wrong settings or too little memory would fail again."""
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
    """Bring one stage up to date; the state's name is Ran, Restored (from DVC's run cache), Cached or Failed.

    The result of a failed state is the StageError. If it were raised, Prefect would log its traceback.
    """
    logger = get_run_logger()
    lines: deque[str] = deque(maxlen=TAIL)

    def log(line: str) -> None:
        lines.append(line)
        logger.info("%s", line.removeprefix(f"{stage}: "))

    answer = ask({"do": "reproduce", "stage": stage}, log)
    if answer.error is not None:
        error = StageError(stage, answer.exit_code, lines, answer.error)
        return Failed(message=str(error), data=error)
    return Completed(name=answer.came.capitalize(), data=answer.came)
