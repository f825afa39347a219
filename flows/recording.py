"""The MLflow records of a flow run, written beside it: while a stage runs, the stages before it are logged.

An unreachable tracking server costs one warning and no training: the stage `register` logs from the same files later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from components.core.errors import Unreachable
from components.core.paths import scratch_folder
from components.core.settings.pipeline import Settings
from components.tracking import runs, stages
from components.tracking.runs import StepMetrics
from components.training.resume import read_steps

POLL_SECONDS = 2.0
STEP_METRICS = ("loss", "learning_rate", "gradient_norm", "tokens_per_second")

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Recording:
    """The MLflow run of a flow run, None when the server does not answer, and what is still to be written to it."""

    def __init__(self, run: runs.PipelineRun | None, background: ThreadPoolExecutor, logger: Logger) -> None:
        self.run = run
        self._background = background
        self._logger = logger
        self._pending: list[Future[None]] = []

    def record(self, stage: str) -> None:
        """Log a stage from its files, in the background."""
        if self.run is not None:
            self._pending.append(self._background.submit(stages.record_stage, self.run, stage))

    @contextmanager
    def logging_steps(self, stage: str) -> Iterator[None]:
        """Log the optimizer steps of a finetune stage while the block runs it; nothing for other stages."""
        if not stage.startswith("finetune@") or self.run is None:
            yield
            return
        over = threading.Event()
        thread = threading.Thread(target=self._log_steps, args=(self.run, stage, over), daemon=True, name="log-steps")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _log_steps(self, run: runs.PipelineRun, stage: str, over: threading.Event) -> None:
        logged = 0
        while not over.wait(POLL_SECONDS):
            steps = read_steps(scratch_folder(stage))
            if len(steps) > logged:
                metrics = [
                    StepMetrics(step.step, {f"step/{name}": getattr(step, name) for name in STEP_METRICS})
                    for step in steps
                ]
                try:
                    runs.log_steps(run, metrics)
                except Unreachable:
                    return  # the stage's own record gives the warning
                logged = len(steps)

    def wait(self) -> None:
        """Return when everything is logged; with one warning when the server does not answer any more."""
        pending, self._pending = self._pending, []
        try:
            for future in pending:
                future.result()
        except Unreachable as error:
            self._logger.warning("%s", error)
            for future in pending:
                future.cancel()

    def finish(self, status: str) -> None:
        """End the MLflow run as FINISHED, FAILED or KILLED, after everything is logged."""
        if self.run is not None:
            self._pending.append(self._background.submit(runs.finish_pipeline_run, self.run, status))
        self.wait()


@contextmanager
def recording(settings: Settings, logger: Logger) -> Iterator[Recording]:
    """An MLflow run that lasts as long as the block: it ends as FINISHED, FAILED, or KILLED by Ctrl-C."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow") as background:
        try:
            run = runs.start_pipeline_run(settings)
        except Unreachable as error:
            logger.warning("%s", error)
            run = None
        records = Recording(run, background, logger)
        status = "FAILED"
        try:
            yield records
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            records.finish(status)
