"""MLflow records of a run, written beside it: while a stage runs, the one before is logged from the files it wrote.

A tracking server that is away costs one warning and no training: the files are there, `register` logs from them later.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from components.core.errors import Unreachable
from components.core.paths import scratch_folder
from components.core.settings.pipeline import Settings
from components.core.stage import stage_name
from components.tracking import runs, stages
from components.training.resume import read_steps

SECONDS_BETWEEN_LOOKS = 2.0
WATCHED = ("loss", "learning_rate", "gradient_norm", "tokens_per_second")


class Recording:
    """The MLflow run of a flow run, if the server answers, and what is still to be written to it."""

    def __init__(self, run: runs.PipelineRun | None, background: ThreadPoolExecutor, logger: Any) -> None:
        self.run = run
        self._background = background
        self._logger = logger
        self._pending: list[Future[None]] = []

    def record(self, stage: str) -> None:
        """Log a stage in the background, from its files."""
        if self.run is not None:
            self._pending.append(self._background.submit(stages.record_stage, self.run, stage))

    @contextmanager
    def watching(self, stage: str) -> Iterator[None]:
        """While the block runs, log the optimizer steps of a finetune stage as they are made."""
        name, _, iteration = stage.partition("@")
        if name != "finetune" or self.run is None:
            yield
            return
        over = threading.Event()
        watcher = threading.Thread(target=self._log_steps, args=(iteration, over), daemon=True, name="watch-steps")
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _log_steps(self, iteration: str, over: threading.Event) -> None:
        assert self.run
        scratch, seen = scratch_folder(stage_name("finetune", iteration)), 0
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            rows = [
                (step.step, {f"step/{name}": getattr(step, name) for name in WATCHED}) for step in read_steps(scratch)
            ]
            if len(rows) > seen:
                try:
                    runs.log_steps(self.run, rows)
                except Unreachable:
                    return  # the stage's record will say so
                seen = len(rows)

    def wait(self) -> None:
        """Return when everything is logged, or the server has gone: then with one warning."""
        pending, self._pending = self._pending, []
        try:
            for done in pending:
                done.result()
        except Unreachable as error:
            self._logger.warning("%s", error)
            for waiting in pending:
                waiting.cancel()

    def finish(self, status: str) -> None:
        if self.run is not None:
            self._pending.append(self._background.submit(runs.finish_pipeline_run, self.run, status))
        self.wait()


@contextmanager
def recording(settings: Settings, logger: Any) -> Iterator[Recording]:
    """An MLflow run as long as the block; it ends as FINISHED, FAILED, or KILLED by Ctrl-C."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow") as background:
        try:
            run = runs.start_pipeline_run(settings)
        except Unreachable as error:
            logger.warning("%s", error)
            run = None
        record = Recording(run, background, logger)
        status = "FAILED"
        try:
            yield record
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            record.finish(status)
