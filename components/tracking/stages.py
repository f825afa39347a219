"""TODO"""

from __future__ import annotations

import csv
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.files import flatten, read_json
from components.core.paths import seconds_file, throughput_file
from components.core.settings.pipeline import Settings
from components.provenance.lockfile import StageEntry, read_entry, read_lock
from components.provenance.statements import read_subjects
from components.tracking.artifacts import log_artifacts, log_datasets
from components.tracking.client import answering, client
from components.tracking.runs import PARENT, PipelineRun, log_steps, log_values, metric_entities

if TYPE_CHECKING:
    pass


STAGE, ITERATION, OUTCOME, OUTPUTS = "iterit.stage", "iterit.iteration", "iterit.outcome", "iterit.outputs"


def record_stage(
    run: PipelineRun,
    stage: str,
    entry: StageEntry | None = None,
    *,
    outcome: str | None = None,
    seconds: float | None = None,
) -> None:
    """Make the child run of a stage from the files that it wrote, once: a second call changes nothing.

    `entry` defaults to what dvc.lock holds, `seconds` to what the stage has noted down. `outcome` is `ran` or
    `cached`; by default the time tells.
    """
    entry = entry or read_entry(stage)
    name, _, key = stage.partition("@")
    ended = _ended(stage)
    outcome = outcome or ("ran" if ended is not None and ended >= run.started else "cached")
    if seconds is None and ended is not None:
        seconds = read_json(seconds_file(stage))["seconds"]
    values, steps = _metrics(entry), _step_rows(entry)
    step = _iteration_number(stage)
    digest = _outputs_digest(entry)
    tags = {PARENT: run.run_id, STAGE: stage, OUTCOME: outcome, OUTPUTS: digest, "mlflow.source.name": stage}
    if step is not None:
        tags[ITERATION] = key or "base"
    tags |= {f"dvc.dep.{path}": md5 for path, md5 in entry.dependencies.items()}
    tags |= {f"dvc.out.{path}": md5 for path, md5 in entry.outputs.items()}
    if stage != "register":  # it is recorded from within, before it has a statement
        tags |= {f"sha256.{path}": digest for path, digest in read_subjects(stage).items()}
    with answering():
        if _is_recorded(run, stage, digest):
            return
        now = time.time()
        end = ended if outcome == "ran" and ended is not None else now
        begin = end - seconds if outcome == "ran" and seconds is not None else end
        child = client().create_run(run.experiment_id, start_time=int(begin * 1000), run_name=stage, tags=tags)
        child_id = child.info.run_id
        group = name.removesuffix("_base")  # the base model is step 0 of the checkpoints' series
        here, series = (
            metric_entities(values, step),
            metric_entities({f"{group}/{k}": v for k, v in values.items()}, step),
        )
        if seconds is not None:
            here += metric_entities({"seconds": seconds}, step)
        if outcome == "ran":
            throughput, by_step = _throughput(stage)
            here += metric_entities(throughput, step)
            for at, row in steps:
                row |= by_step.get(at, {})
        for at, row in steps:
            here += metric_entities(row, at)
        log_values(child_id, here, entry.params)
        if step is not None:  # the series over iterations and steps belong to the run that spans them, too
            log_values(run.run_id, series)
            log_steps(run, steps)
        log_datasets(child_id, name, key, entry)
        log_artifacts(child_id, entry)
        client().set_terminated(child_id, end_time=int(end * 1000))


def record_all(run: PipelineRun, settings: Settings, *, except_for: Sequence[str] = ()) -> None:
    """Record every stage of dvc.lock that belongs to the pipeline as params.yaml has it now."""
    for stage, entry in read_lock().items():
        name, _, key = stage.partition("@")
        current = settings.ingest.files if name == "manifest" else settings.iterations
        if stage not in except_for and (not key or key in current):
            record_stage(run, stage, entry)


def _ended(stage: str) -> float | None:
    """When the stage's work ended here, in seconds since the epoch; None when it never ran in this workspace."""
    file = seconds_file(stage)
    return file.stat().st_mtime if file.is_file() else None


def _iteration_number(stage: str) -> int | None:
    """The place of a stage in the loop, 0 for the base model; None for a stage that is not in the loop."""
    name, _, key = stage.partition("@")
    if name == "evaluate_base":
        return 0
    return int(key) if key and name != "manifest" else None


def _outputs_digest(entry: StageEntry) -> str:
    """One digest for all that a stage wrote: SHA-256 of the paths and their hashes, in hex."""
    text = "".join(f"{path}\0{md5}\n" for path, md5 in sorted(entry.outputs.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_recorded(run: PipelineRun, stage: str, digest: str) -> bool:
    """Whether the stage has a complete child run; one that was cut off, or of other outputs, is taken away."""
    query = f"tags.`{PARENT}` = '{run.run_id}' and tags.`{STAGE}` = '{stage}'"
    recorded = False
    for child in client().search_runs([run.experiment_id], query):
        if child.info.status == "FINISHED" and child.data.tags.get(OUTPUTS) == digest:
            recorded = True
        else:
            client().delete_run(child.info.run_id)
    return recorded


def _metrics(entry: StageEntry) -> dict[str, float]:
    """The numbers of the metrics files that the stage wrote, nested ones by path: {"rejected/too_long": 3}."""
    numbers: dict[str, float] = {}
    for path in entry.outputs:
        if path.startswith("metrics/") and path.endswith(".json"):
            for key, value in flatten(read_json(Path(path))).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    numbers[key.replace(".", "/")] = float(value)
    return numbers


def _throughput(stage: str) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """How fast the stage was here and its peak memory, and the speed of each step; nothing where that is not known."""
    file = throughput_file(stage)
    if not file.is_file():
        return {}, {}
    measured = read_json(file)
    by_step = {int(step): {"step/tokens_per_second": speed} for step, speed in measured.pop("steps").items()}
    return {f"throughput/{name}": value for name, value in measured.items()}, by_step


def _step_rows(entry: StageEntry) -> list[tuple[int, dict[str, float]]]:
    """The optimizer steps of the stage: their number, counted over all iterations, and what was measured in each."""
    rows = []
    for path in map(Path, entry.outputs):
        if path.name == "steps.csv":
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    measured = {f"step/{key}": float(row[key]) for key in ("loss", "learning_rate", "gradient_norm")}
                    rows.append((int(row["step"]), measured))
    return rows
