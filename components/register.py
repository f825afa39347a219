"""Stage `register`: a checkpoint becomes a version of the registered MLflow model, and passes the gate.

The checkpoint is that of the last iteration, or of the best one (gate.register). The registry is outside DVC: the stage
runs again whenever the checkpoint changes, and looks up itself whether a version holds the checkpoint. No checkpoint is
registered twice; going back to an earlier checkpoint moves the alias back.

In a flow, ITERIT_PIPELINE_RUN names the MLflow run to complete; without it (`dvc repro`) the stage starts a run and
records every stage in it. metrics/register.json holds the checkpoint and the gate's decision with its figures, whatever
the registry's numbers; the version and the MLflow run are in .iterit/registered.json.

    python -m components.register --models models --metrics metrics --holdout data/holdout.parquet
        --evaluations data/evaluations --benchmarks data/benchmarks --result metrics/register.json
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from components.core.errors import UserError
from components.core.files import read_json, write_json
from components.core.params import load_settings
from components.core.settings.pipeline import Settings
from components.core.stage import stage
from components.data import tables
from components.promotion.benchmarks import BenchmarkFiles, read_benchmarked
from components.promotion.champion import Candidate, log_benchmarks, pass_gate, read_as
from components.promotion.gate import choose
from components.promotion.registered import Registered, write_registered
from components.provenance.digests import cached_digest, file_digest
from components.provenance.lockfile import make_entry
from components.provenance.statements import statement_of
from components.tracking import registry, runs, stages

BLOCKS = ("experiment", "register", "gate", "iterations")  # of params.yaml, on which the stage depends in dvc.yaml


EXPERIMENT = "DVC_EXP_NAME"  # set by `dvc exp run`: an experiment never changes what is in production


@dataclass(frozen=True, slots=True)
class Places:
    """What the stage reads and writes, by default where dvc.yaml puts it."""

    models: Path = Path("models")
    metrics: Path = Path("metrics")
    holdout: Path = Path("data/holdout.parquet")
    evaluations: Path = Path("data/evaluations")
    benchmarks: Path = Path("data/benchmarks")
    result: Path = Path("metrics/register.json")

    def evaluations_of(self, iteration: str) -> Path:
        """The table of the iteration's checkpoint."""
        return self.evaluations / f"{iteration}.parquet"

    def benchmarks_of(self, iteration: str) -> BenchmarkFiles:
        """What the stage `benchmark` wrote of the iteration's checkpoint; not there without such a stage."""
        return BenchmarkFiles(
            self.benchmarks / f"{iteration}.parquet", self.metrics / "benchmark" / f"{iteration}.json"
        )


@dataclass(frozen=True, slots=True)
class CheckpointDescription:
    """What metrics/register.json holds beside the gate's decision."""

    model: str
    alias: str
    iteration: str
    """The iteration of the checkpoint, as gate.register chooses it."""
    checkpoint: str
    """Digest of the checkpoint."""
    holdout: Mapping[str, float]
    """Its metrics on the holdout."""


def describe_checkpoint(settings: Settings, models: Path, metrics: Path) -> CheckpointDescription:
    """The checkpoint to register. Raises UserError when a metrics file is missing."""
    holdouts = {key: read_json(metrics / "evaluate" / f"{key}.json") for key in settings.iterations}
    iteration = choose(holdouts, settings.gate)
    return CheckpointDescription(
        model=settings.register_.name,
        alias=settings.register_.alias,
        iteration=iteration,
        checkpoint=cached_digest(models / iteration),
        holdout={key: value for key, value in holdouts[iteration].items() if isinstance(value, int | float)},
    )


def register_checkpoint(
    run: runs.PipelineRun, described: CheckpointDescription, places: Places, settings: Settings
) -> registry.RegisteredVersion:
    """The version of the registered model that holds the checkpoint. Raises Unreachable when MLflow does not answer."""
    tags = {
        registry.CHECKPOINT: described.checkpoint,
        "iterit.iteration": described.iteration,
        registry.HOLDOUT_DIGEST: file_digest(places.holdout),
        registry.READ_AS: read_as(settings),
        **{f"holdout.{key}": str(value) for key, value in described.holdout.items()},
    }
    return registry.register_checkpoint(
        run,
        places.models / described.iteration,
        name=described.model,
        alias=described.alias,
        tags=tags,
        metrics=described.holdout,
        evaluations=places.evaluations_of(described.iteration),
    )


def complete_run(places: Places, settings: Settings, arithmetic: AbstractContextManager[object]) -> Registered | None:
    """Record every stage in MLflow, register the checkpoint, pass it through the gate, and write `places.result`.

    An experiment of DVC is recorded and no more: None. `arithmetic` is entered while a model computes, which is only
    where the champion is evaluated again.
    """
    started = time.monotonic()
    described = describe_checkpoint(settings, places.models, places.metrics)
    flow_run = os.environ.get(runs.RUN_VARIABLE)
    run = runs.open_pipeline_run(flow_run) if flow_run else runs.start_pipeline_run(settings, started=dvc_start_time())
    stages.record_all(run, settings, except_for=["register"])
    registered = None
    if EXPERIMENT not in os.environ:
        registered = register_and_decide(run, described, places, settings, arithmetic)
    decided = registered.gate.result if registered else None  # an experiment does not come to the gate
    write_json(places.result, {**asdict(described), "gate": decided})
    entry, seconds = make_entry(BLOCKS, places.result), time.monotonic() - started  # DVC notes them down after this
    stages.record_stage(run, "register", entry, outcome=stages.RAN, seconds=seconds)
    if not flow_run:
        runs.finish_pipeline_run(run)
    return registered


def register_and_decide(
    run: runs.PipelineRun,
    described: CheckpointDescription,
    places: Places,
    settings: Settings,
    arithmetic: AbstractContextManager[object],
) -> Registered:
    """Make the checkpoint a registered version, unless it is one, and let the gate decide about the champion."""
    version = register_checkpoint(run, described, places, settings)
    evaluations = tables.read(places.evaluations_of(described.iteration), tables.EVALUATIONS)
    benchmarks = None
    if described.iteration in settings.benchmark.checkpoints:
        files = places.benchmarks_of(described.iteration)
        benchmarks = read_benchmarked(files)
        if benchmarks.checkpoint != described.checkpoint:
            raise UserError(f"{files.result}: of another checkpoint; `dvc repro` makes it again")
        log_benchmarks(version.model, version.version, files)
    candidate = Candidate(version.model, version.version, evaluations, benchmarks)
    decision = pass_gate(candidate, places.holdout, settings, arithmetic)
    return Registered(
        model=version.model,
        checkpoint=described.checkpoint,
        version=version.version,
        alias=described.alias,
        new=version.is_new,
        gate=decision,
        run_id=run.run_id,
        url=run.url,
    )


def register_by_hand() -> Registered:
    """Register the checkpoint that is in the workspace, as an experiment leaves it to the user."""
    settings, places = load_settings(), Places()
    described = describe_checkpoint(settings, places.models, places.metrics)
    run = runs.start_pipeline_run(settings)
    stages.record_all(run, settings)
    registered = register_and_decide(run, described, places, settings, nullcontext())
    runs.finish_pipeline_run(run)
    write_registered(registered)
    return registered


def describe_registered(registered: Registered) -> list[str]:
    """Lines for a person: the version, what the gate decided, what the holdout cannot show, and the benchmarks."""
    outcome = "registered" if registered.new else "already registered, not again"
    return [
        f"register: {registered.model} version {registered.version}: {outcome}; alias {registered.alias}",
        f"gate: {registered.gate.verdict}",
        *([f"gate: {registered.gate.resolution}"] if registered.gate.resolution else []),
        *(f"gate: {line}" for line in registered.gate.benchmark_lines),
    ]


def dvc_start_time() -> float:
    """When the `dvc` above this process started, in seconds since the epoch; without one, this process's own start."""
    ancestors = [process for process in psutil.Process().parents() if "dvc" in " ".join(process.cmdline()[:3])]
    return float(min(process.create_time() for process in (*ancestors, psutil.Process())))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.register",
        description="Register the checkpoint and complete the MLflow records.",
    )
    for name in ("models", "metrics", "holdout", "evaluations", "benchmarks", "result"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    places = Places(**vars(options))
    with stage("register") as running, statement_of(running.name):
        registered = complete_run(places, load_settings(), running.arithmetic)
        if registered is None:
            print(f"register: experiment {os.environ[EXPERIMENT]}: recorded, not registered; `iterit register` does it")
        else:
            write_registered(registered)
            print(*describe_registered(registered), sep="\n")


if __name__ == "__main__":
    main()
