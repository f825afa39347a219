"""Workers side by side: each runs stages in a folder, with its share of the cores, or with GPUs of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from components.core.errors import UserError
from components.core.process import usable_cores
from flows.task import DvcProcess, StageError

DEVICES = "CUDA_VISIBLE_DEVICES"

Environment = Mapping[str, str]
Log = Callable[[str], object]


class StoppedError(Exception):
    """The command ends; no further stage is started."""


class Workers:
    """As many folders at a time as there are workers; `stop` ends all that runs."""

    def __init__(self, environments: Sequence[Environment]) -> None:
        """`environments` has one entry a worker: the variables that its stages get."""
        self._free: SimpleQueue[Environment] = SimpleQueue()
        for environment in environments:
            self._free.put(environment)
        self._processes: set[DvcProcess] = set()
        self._lock = threading.Lock()
        self._is_stopped = False

    def run(
        self,
        folder: Path,
        stages: Sequence[str],
        log: Log,
        *,
        kept: Callable[[str], bool] = lambda _: True,
        alone: bool = False,
    ) -> dict[str, str]:
        """Bring the stages in `folder` up to date, one after the other; returns how each came (flows/dvc_worker.py).

        What a stage writes goes into DVC's cache where `kept` says so. `alone`: no other worker is at work, so that the
        stages get the whole machine. Raises StageError, StoppedError.
        """
        if alone:
            return self._run(folder, stages, log, kept, {})
        environment = self._free.get()
        try:
            return self._run(folder, stages, log, kept, environment)
        finally:
            self._free.put(environment)

    def _run(
        self, folder: Path, stages: Sequence[str], log: Log, kept: Callable[[str], bool], environment: Environment
    ) -> dict[str, str]:
        with self._process(folder, environment) as process:
            return {stage: self._run_stage(process, stage, log, is_kept=kept(stage)) for stage in stages}

    def _run_stage(self, process: DvcProcess, stage: str, log: Log, *, is_kept: bool) -> str:
        printed: list[str] = []

        def on_line(line: str) -> None:
            printed.append(line)
            log(line)

        answer = process.ask({"do": "reproduce", "stage": stage, "keep": "yes" if is_kept else "no"}, on_line)
        if self._is_stopped:
            raise StoppedError
        if answer.error is not None:
            raise StageError(stage, answer.exit_code, printed, answer.error)
        return answer.came

    @contextmanager
    def _process(self, folder: Path, environment: Environment) -> Iterator[DvcProcess]:
        with self._lock:
            if self._is_stopped:
                raise StoppedError
            process = DvcProcess(folder, environment)
            self._processes.add(process)
        try:
            yield process
        finally:
            with self._lock:
                self._processes.discard(process)
                process.kill()

    def stop(self) -> None:
        """End every stage that runs, and start none any more."""
        with self._lock:
            self._is_stopped = True
            for process in self._processes:
                process.end_stages()


def share_machine(workers: int) -> list[Environment]:
    """What each of the workers gets of this machine. Raises UserError where there are fewer GPUs than workers."""
    from torch import cuda

    if not cuda.is_available():
        threads = max(1, usable_cores() // workers)
        return [{"OMP_NUM_THREADS": str(threads)}] * workers
    visible = os.environ.get(DEVICES, "")
    devices = visible.split(",") if visible else [str(number) for number in range(cuda.device_count())]
    if len(devices) < workers:
        raise UserError(f"--workers {workers}: there are {len(devices)} GPUs; a worker needs one of its own")
    each = len(devices) // workers
    return [{DEVICES: ",".join(devices[number * each : (number + 1) * each])} for number in range(workers)]
