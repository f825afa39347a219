"""The MLflow records of a flow run, written beside it: while a stage runs, the stages before it are logged.

A tracking server that is lost or refuses costs one warning and no training: the stage `register` logs from the same
files later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from components.core.errors import Unreachable, UserError
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
        self._lost = False  # whether something could not be written

    def record(self, stage: str) -> None:
        """Log a stage from its files, in the background; nothing once the server is lost."""
        if self.run is not None:
            self._pending.append(self._background.submit(self._record, self.run, stage))

    def _record(self, run: runs.PipelineRun, stage: str) -> None:
        if not self._lost:
            self._write(partial(stages.record_stage, run, stage))

    def _write(self, write: Callable[[], None]) -> bool:
        """Whether it could be written; the first time that it could not costs a warning."""
        try:
            write()
        except UserError as error:
            if not self._lost:
                self._logger.warning("%s", error)
            self._lost = True
            return False
        return True

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
                except UserError:
                    return  # the stage's own record gives the warning
                logged = len(steps)

    def wait(self) -> None:
        """Return when everything is logged that can be."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def finish(self, status: str) -> bool:
        """End the MLflow run as FINISHED, FAILED or KILLED, after everything is logged. Whether it has ended."""
        self.wait()
        return self.run is None or self._write(partial(runs.finish_pipeline_run, self.run, status))


@contextmanager
def recording(settings: Settings, logger: Logger, unfinished: list[str]) -> Iterator[Recording]:
    """An MLflow run that lasts as long as the block: it ends as FINISHED, FAILED, or KILLED by Ctrl-C.

    Where its end cannot be recorded, its id joins `unfinished`.
    """
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
            if not records.finish(status) and run is not None:
                unfinished.append(run.run_id)
