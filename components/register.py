"""Stage `register`: the last checkpoint becomes a version of the registered MLflow model, and passes the gate.

The registry is outside DVC: this stage runs again whenever the checkpoint changes, and finds out itself whether a
version holds that checkpoint already. Nothing is registered twice, and going back to an earlier checkpoint moves the
alias back. Within a flow, ITERIT_PIPELINE_RUN names the MLflow run to complete; without it (`dvc repro`) the stage
makes one, and records every stage in it.

metrics/register.json holds what is the same wherever the pipeline runs; version and run are in .iterit/registered.json.

    python -m components.register --models models --metrics metrics --result metrics/register.json ...
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from components.core.files import read_json, write_json
from components.core.params import load_settings
from components.core.settings.pipeline import Settings
from components.core.stage import Stopwatch, stage
from components.promotion.champion import Candidate, pass_gate
from components.promotion.gate import choose
from components.promotion.registered import Registered, write_registered
from components.provenance.digests import cached_digest, file_digest
from components.provenance.lockfile import make_entry
from components.provenance.statements import statement_of
from components.tracking import registry, runs, stages

RUN_VARIABLE = "ITERIT_PIPELINE_RUN"


@dataclass(frozen=True, slots=True)
class CheckpointDescription:
    """What metrics/register.json holds."""

    model: str
    alias: str
    iteration: str
    """Whose checkpoint gate.register chooses."""
    checkpoint: str
    """The checkpoint's digest."""
    holdout: Mapping[str, float]
    """Its metrics on the holdout."""


def describe_checkpoint(settings: Settings, models: Path, metrics: Path) -> CheckpointDescription:
    """The checkpoint that is to be registered. Raises UserError when a metrics file is not there."""
    holdouts = {key: read_json(metrics / "evaluate" / f"{key}.json") for key in settings.iterations}
    iteration = choose(holdouts, settings.gate)
    numbers = {key: value for key, value in holdouts[iteration].items() if isinstance(value, int | float)}
    return CheckpointDescription(
        settings.register_.name, settings.register_.alias, iteration, cached_digest(models / iteration), numbers
    )


def register(
    run: runs.PipelineRun, described: CheckpointDescription, models: Path, holdout: Path
) -> registry.RegisteredVersion:
    """Register the checkpoint. Raises Unreachable when MLflow does not answer."""
    tags = {
        registry.CHECKPOINT: described.checkpoint,
        "iterit.iteration": described.iteration,
        registry.HOLDOUT_DIGEST: file_digest(holdout),
        **{f"holdout.{key}": str(value) for key, value in described.holdout.items()},
    }
    return registry.register_checkpoint(
        run,
        models / described.iteration,
        name=described.model,
        alias=described.alias,
        tags=tags,
        metrics=described.holdout,
    )


def complete_records(options: argparse.Namespace, settings: Settings, arithmetic: Stopwatch) -> Registered:
    """Record every stage in MLflow, register the checkpoint and pass the gate; metrics/register.json is written."""
    started = time.monotonic()
    described = describe_checkpoint(settings, options.models, options.metrics)
    flow_run = os.environ.get(RUN_VARIABLE)
    begin = runs.start_pipeline_run
    run = runs.open_pipeline_run(flow_run) if flow_run else begin(settings, started=dvc_start_time())
    stages.record_all(run, settings, except_for=["register"])
    version = register(run, described, options.models, options.holdout)
    candidate = Candidate(version.model, version.version, described.holdout)
    decision = pass_gate(candidate, options.holdout, settings, arithmetic)
    write_json(options.result, asdict(described))
    entry = make_entry(["experiment", "register", "gate", "iterations"], options.result)
    stages.record_stage(run, "register", entry, outcome="ran", seconds=time.monotonic() - started)
    if not flow_run:
        runs.finish_pipeline_run(run)
    return Registered(
        version.model,
        described.checkpoint,
        version.version,
        described.alias,
        version.is_new,
        decision,
        run.run_id,
        run.url,
    )


def dvc_start_time() -> float:
    """When the `dvc` above this process started, in seconds since the epoch; without one, this process's own start."""
    dvcs = [process for process in psutil.Process().parents() if "dvc" in " ".join(process.cmdline()[:3])]
    return float(min(process.create_time() for process in (*dvcs, psutil.Process())))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.register",
        description="Register the last checkpoint and complete the MLflow records.",
    )
    for name in ("models", "metrics", "holdout", "result"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    with stage("register") as running, statement_of(running.name):
        registered = complete_records(options, load_settings(), running.arithmetic)
        write_registered(registered)
        done = "registered" if registered.new else "already registered, not again"
        print(f"register: {registered.model} version {registered.version}: {done}; alias {registered.alias}")
        gate = registered.gate
        print(f"gate: {'champion' if gate.promoted else 'not the champion'}: {gate.reason}")


if __name__ == "__main__":
    main()
