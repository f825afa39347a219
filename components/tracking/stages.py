"""The child run of a stage, made of the files that the stage wrote and of its entry in dvc.lock."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.core.files import flatten, read_csv, read_json
from components.core.paths import seconds_file, throughput_file
from components.core.settings.pipeline import Settings
from components.provenance.lockfile import StageEntry, read_entry, read_lock
from components.provenance.statements import read_subjects
from components.tracking.artifacts import log_artifacts, log_datasets
from components.tracking.client import client, explain_unreachable
from components.tracking.runs import PARENT, PipelineRun, StepMetrics, log_steps, log_values, metric_entities

STAGE, ITERATION, OUTCOME, OUTPUTS = "iterit.stage", "iterit.iteration", "iterit.outcome", "iterit.outputs"  # tags
RAN, CACHED = "ran", "cached"  # outcomes
SERIES = ("plots/picks.csv", "plots/hard.csv")  # of the stage report: columns that become series over iterations
STEP_METRICS = ("loss", "learning_rate", "gradient_norm")  # columns of steps.csv


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What a child run holds of a stage."""

    stage: str
    """DVC's name: `dedupe`, `score@2`."""
    entry: StageEntry
    outcome: str
    """`ran` or `cached`."""
    ended: float | None
    """When the stage ended, in seconds since the epoch; None when it came from the cache, or has not ended yet."""
    seconds: float | None
    """How long it took when it last ran in this workspace; None when it never did."""
    iteration: int | None
    """Its iteration, 0 for the base model; None outside the loop."""
    metrics: Mapping[str, float]
    """The numbers in its metrics files, nested keys as paths: {"rejected/too_long": 3}."""
    throughput: Mapping[str, float]
    """Speed and peak memory on this machine; empty for a stage from the cache."""
    steps: Sequence[StepMetrics]
    """The optimizer steps of a `finetune` stage."""
    series: Mapping[int, Mapping[str, float]]
    """Iteration -> what the stage `report` found of it: {"picks/new": 3}."""
    tags: Mapping[str, str]

    @property
    def outputs_digest(self) -> str:
        """One digest of all outputs, by which a complete child run is recognized."""
        return self.tags[OUTPUTS]


def record_all(run: PipelineRun, settings: Settings, *, except_for: Sequence[str] = ()) -> None:
    """Record every stage of dvc.lock that params.yaml still has."""
    for stage, entry in read_lock().items():
        name, _, key = stage.partition("@")
        keys = {"manifest": settings.ingest.files, "benchmark": settings.benchmark.checkpoints}.get(
            name, settings.iterations
        )
        if stage not in except_for and (not key or key in keys):
            record_stage(run, stage, entry)


def record_stage(
    run: PipelineRun,
    stage: str,
    entry: StageEntry | None = None,
    *,
    outcome: str | None = None,
    seconds: float | None = None,
) -> None:
    """Make the child run of a stage, once: a second call changes nothing.

    `entry` defaults to the entry in dvc.lock, `seconds` to the time that the stage noted down, `outcome` to `ran` when
    the stage ended after the run began. Raises UserError when dvc.lock does not have the stage.
    """
    entry = entry or read_entry(stage)
    record = read_record(stage, entry, run_started=run.started, outcome=outcome, seconds=seconds)
    with explain_unreachable():
        if not _is_recorded(run, record):
            _write_record(run, record)


def read_record(
    stage: str,
    entry: StageEntry,
    *,
    run_started: float,
    outcome: str | None = None,
    seconds: float | None = None,
) -> StageRecord:
    """The record of a stage, from its files; the defaults are those of record_stage."""
    timing, speed = seconds_file(stage), throughput_file(stage)
    ended = timing.stat().st_mtime if timing.is_file() else None
    if seconds is None and ended is not None:
        seconds = read_json(timing)["seconds"]
    if outcome is None:
        outcome = RAN if ended is not None and ended >= run_started else CACHED
    throughput = read_json(speed) if outcome == RAN and speed.is_file() else {}
    step_speeds = throughput.pop("steps", {})
    return StageRecord(
        stage=stage,
        entry=entry,
        outcome=outcome,
        ended=ended if outcome == RAN else None,
        seconds=seconds,
        iteration=_iteration_number(stage),
        metrics=_read_metrics(entry),
        throughput={f"throughput/{key}": value for key, value in throughput.items()},
        steps=_read_steps(entry, step_speeds),
        series=_read_series(entry),
        tags=_tags(stage, entry, outcome),
    )


def _iteration_number(stage: str) -> int | None:
    """The iteration of a stage in the loop, 0 for the base model; None for a stage outside the loop."""
    name, _, key = stage.partition("@")
    if name == "evaluate_base" or key == "base":
        return 0
    return int(key) if key and name != "manifest" else None


def _read_metrics(entry: StageEntry) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for path in entry.outputs:
        if path.startswith("metrics/") and path.endswith(".json"):
            for key, value in flatten(read_json(Path(path))).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    numbers[key.replace(".", "/")] = float(value)
    return numbers


def _read_steps(entry: StageEntry, speeds: Mapping[str, float]) -> list[StepMetrics]:
    """The rows of steps.csv; `speeds`: step -> tokens per second, where it was measured on this machine."""
    rows = [row for path in map(Path, entry.outputs) if path.name == "steps.csv" for row in read_csv(path)]
    steps = []
    for row in rows:
        values = {f"step/{key}": float(row[key]) for key in STEP_METRICS}
        if row["step"] in speeds:
            values["step/tokens_per_second"] = speeds[row["step"]]
        steps.append(StepMetrics(int(row["step"]), values))
    return steps


def _read_series(entry: StageEntry) -> dict[int, dict[str, float]]:
    series: dict[int, dict[str, float]] = {}
    for path in (Path(name) for name in SERIES if name in entry.outputs):
        for row in read_csv(path):
            figures = {f"{path.stem}/{key}": float(value) for key, value in row.items() if key != "iteration"}
            series.setdefault(int(row["iteration"]), {}).update(figures)
    return series


def _tags(stage: str, entry: StageEntry, outcome: str) -> dict[str, str]:
    tags = {STAGE: stage, OUTCOME: outcome, OUTPUTS: _outputs_digest(entry), "mlflow.source.name": stage}
    if _iteration_number(stage) is not None:
        tags[ITERATION] = stage.partition("@")[2] or "base"
    tags |= {f"dvc.dep.{path}": md5 for path, md5 in entry.dependencies.items()}
    tags |= {f"dvc.out.{path}": md5 for path, md5 in entry.outputs.items()}
    if stage != "register":  # it records itself, before its statement is written
        tags |= {f"sha256.{path}": digest for path, digest in read_subjects(stage).items()}
    return tags


def _outputs_digest(entry: StageEntry) -> str:
    """SHA-256, in hex, of the outputs' paths and hashes."""
    text = "".join(f"{path}\0{md5}\n" for path, md5 in sorted(entry.outputs.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_recorded(run: PipelineRun, record: StageRecord) -> bool:
    """Whether the run has a complete child run of these outputs; others of the stage, cut off or older, are deleted."""
    query = f"tags.`{PARENT}` = '{run.run_id}' and tags.`{STAGE}` = '{record.stage}'"
    recorded = False
    for child in client().search_runs([run.experiment_id], query):
        if child.info.status == "FINISHED" and child.data.tags.get(OUTPUTS) == record.outputs_digest:
            recorded = True
        else:
            client().delete_run(child.info.run_id)
    return recorded


def _write_record(run: PipelineRun, record: StageRecord) -> None:
    ended = time.time() if record.ended is None else record.ended
    started = ended - record.seconds if record.outcome == RAN and record.seconds is not None else ended
    tags = {PARENT: run.run_id, **record.tags}
    child = client().create_run(run.experiment_id, start_time=int(started * 1000), run_name=record.stage, tags=tags)
    child_id = child.info.run_id
    _log_metrics(run, child_id, record)
    log_values(child_id, params=record.entry.params)
    log_datasets(child_id, record.stage, record.entry)
    log_artifacts(child_id, record.entry)
    client().set_terminated(child_id, end_time=int(ended * 1000))


def _log_metrics(run: PipelineRun, child_id: str, record: StageRecord) -> None:
    """Log the metrics in the child run; those of the loop also in the parent run, whose series span all iterations."""
    seconds = {} if record.seconds is None else {"seconds": record.seconds}
    metrics = metric_entities({**record.metrics, **seconds, **record.throughput}, record.iteration)
    metrics += [metric for step in record.steps for metric in metric_entities(step.values, step.step)]
    log_values(child_id, metrics)
    for iteration, figures in record.series.items():
        log_values(run.run_id, metric_entities(figures, iteration))
    if record.iteration is not None:
        group = record.stage.partition("@")[0].removesuffix("_base")  # the base model begins the checkpoints' series
        series = {f"{group}/{key}": value for key, value in record.metrics.items()}
        log_values(run.run_id, metric_entities(series, record.iteration))
        log_steps(run, record.steps)
