"""One Prefect task is one DVC stage: it runs when something it depends on has changed, and is logged line by line."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from components.core.errors import TRY_LATER, printable, without_password
from components.core.paths import PARAMS
from components.core.process import name_as_parent

CHANGED = "changed during the run, whose stages so far are those of the earlier values: run again"
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
    is_final: bool = False
    """Whether another try would do something else than this run began with."""


Ask = Callable[[dict[str, str], Callable[[str], None]], Answer]


class StageError(Exception):
    """A stage failed. The message holds the errors that it printed, or else its last lines and the reason."""

    def __init__(
        self, stage: str, exit_code: int | None, printed: Sequence[str], reason: str, *, is_final: bool = False
    ) -> None:
        mistakes = [line for line in printed if line.startswith("error: ")]
        super().__init__("\n".join(mistakes or [*printed, f"{stage}: {reason}"]))
        self.exit_code = exit_code
        self.is_final = is_final
        self.lines = mistakes or [f"error: {stage}: {reason}"]


class DvcProcess:
    """A process that runs DVC in a project folder (flows/dvc_worker.py). It and its stages end with `kill`."""

    def __init__(self, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        """`folder` is the current one by default; `environment` is added to this process's."""
        self._file = (folder or Path()) / PARAMS
        self._params = self._file.read_bytes()  # a run never mixes stages of two sets of parameters
        answers, answering = os.pipe()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # dvc.yaml starts `python`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flows.dvc_worker", str(answering)],
            pass_fds=[answering],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the flow alone, which then ends the whole group
            env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **name_as_parent(), **(environment or {})},
            cwd=folder,
            text=True,
            errors="replace",
        )
        os.close(answering)
        self._answers = os.fdopen(answers)

    def ask(self, request: dict[str, str], on_line: Callable[[str], None]) -> Answer:
        """Send a request, pass every line that is printed for it to `on_line`, and return the answer."""
        if request["do"] == "reproduce" and self._file.read_bytes() != self._params:
            return Answer(error=f"{PARAMS} {CHANGED}", exit_code=TRY_LATER, is_final=True)
        assert self._process.stdin and self._process.stdout
        mark = secrets.token_hex(16)
        with suppress(BrokenPipeError):  # then its output has ended, too
            self._process.stdin.write(json.dumps({**request, "mark": mark}) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            printed, is_last, _ = line.rstrip("\n").partition(mark)  # a stage may end within a line
            if printed.strip():
                on_line(printable(without_password(printed)))
            if is_last:
                return Answer(**json.loads(self._answers.readline()))
        return Answer(error=f"the DVC process ended with code {self._process.wait()}")

    def kill(self) -> None:
        """End it together with the stage that it runs."""
        self.end_stages()
        self._answers.close()
        self._process.wait()

    def end_stages(self) -> None:
        """Send the end to it and its stage; whoever waits for its answer is told that it has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


@contextmanager
def dvc_worker() -> Iterator[Ask]:
    """A DVC process that lives as long as the block, and the function that asks it."""
    process = DvcProcess()
    try:
        yield process.ask
    finally:
        process.kill()


def _can_be_retried(task: Any, run: Any, state: State[Any]) -> bool:  # noqa: ARG001  Prefect's signature
    """Whether something did not answer; wrong settings or too little memory would fail again."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, StageError) and failure.exit_code == TRY_LATER and not failure.is_final


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
        error = StageError(stage, answer.exit_code, lines, answer.error, is_final=answer.is_final)
        return Failed(message=str(error), data=error)
    return Completed(name=answer.came.capitalize(), data=answer.came)
