"""The last checkpoint becomes a version of the registered MLflow model; the records of the run are completed.

    python -m components.register --models models --metrics metrics --result metrics/register.json

The registry is outside DVC: this stage runs again whenever the checkpoint changes, and finds out itself whether a
version holds that checkpoint already. Nothing is registered twice, and going back to an earlier checkpoint moves the
alias back. Within a flow, ITERIT_PIPELINE_RUN names the MLflow run to complete; without it (`dvc repro`) the stage
makes one, and records every stage in it.

metrics/register.json holds what is the same wherever the pipeline runs. Version and run are in .iterit/registered.json.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import psutil

from components import tables, tracking
from components.digests import folder_digest
from components.settings import Settings, load_settings
from components.stage import SCRATCH, stage

RUN_VARIABLE = "ITERIT_PIPELINE_RUN"
REGISTERED = SCRATCH / "registered.json"


def describe_checkpoint(settings: Settings, models: Path, metrics: Path) -> dict[str, Any]:
    """What metrics/register.json holds: the checkpoint of the last iteration, its digest and its holdout metrics."""
    iteration = list(settings.iterations)[-1]
    holdout = tables.read_json(metrics / "evaluate" / f"{iteration}.json")
    return {
        "model": settings.register_.name,
        "alias": settings.register_.alias,
        "iteration": iteration,
        "checkpoint": folder_digest(models / iteration),
        "holdout": {key: value for key, value in holdout.items() if isinstance(value, int | float)},
    }


def register(run: tracking.PipelineRun, result: dict[str, Any], models: Path) -> tracking.RegisteredVersion:
    """Register the checkpoint that `result` describes. Raises Unreachable when MLflow does not answer."""
    tags = {"iterit.checkpoint": result["checkpoint"], "iterit.iteration": result["iteration"]}
    tags |= {f"holdout.{key}": str(value) for key, value in result["holdout"].items()}
    return tracking.register_checkpoint(
        run,
        models / result["iteration"],
        name=result["model"],
        alias=result["alias"],
        tags=tags,
        metrics=result["holdout"],
    )


def begin_of_dvc() -> float:
    """When the `dvc` above this process began, in seconds since the epoch; this process's own begin without one."""
    ancestors = psutil.Process().parents()
    begins: list[float] = [process.create_time() for process in ancestors if "dvc" in " ".join(process.cmdline()[:3])]
    begins.append(psutil.Process().create_time())
    return min(begins)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.register",
        description="Register the last checkpoint and complete the MLflow records.",
    )
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    with stage("register"):
        settings = load_settings()
        begun = time.monotonic()
        result = describe_checkpoint(settings, options.models, options.metrics)
        flow_run = os.environ.get(RUN_VARIABLE)
        if flow_run:
            run = tracking.open_pipeline_run(flow_run)
        else:
            run = tracking.start_pipeline_run(settings, started=begin_of_dvc())
        tracking.record_all(run, settings, except_for=["register"])
        version = register(run, result, options.models)
        tables.write_json(options.result, result)
        entry = tracking.make_entry(["experiment", "register", "iterations"], options.result)
        tracking.record_stage(run, "register", entry, outcome="ran", seconds=time.monotonic() - begun)
        if not flow_run:
            tracking.finish_pipeline_run(run)
        tables.write_json(
            REGISTERED,
            {
                "model": version.model,
                "checkpoint": result["checkpoint"],
                "version": version.version,
                "alias": result["alias"],
                "new": version.is_new,
                "run_id": run.run_id,
                "url": run.url,
            },
        )
        done = "registered" if version.is_new else "already registered, not again"
        print(f"register: {version.model} version {version.version}: {done}; alias {result['alias']}")


if __name__ == "__main__":
    main()
