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
import json
import os
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil

from components import gate, tables, tracking
from components.digests import file_digest, known_digest
from components.errors import UserError
from components.scratch import SCRATCH
from components.settings import Settings, load_settings
from components.stage import stage

RUN_VARIABLE = "ITERIT_PIPELINE_RUN"
REGISTERED = SCRATCH / "registered.json"
HOLDOUT = "iterit.holdout"  # tag: SHA-256 of the holdout that a version was evaluated on


def describe_checkpoint(settings: Settings, models: Path, metrics: Path) -> dict[str, Any]:
    """What metrics/register.json holds: the checkpoint that gate.register names, its digest and holdout metrics."""
    holdouts = {key: tables.read_json(metrics / "evaluate" / f"{key}.json") for key in settings.iterations}
    iteration = gate.choose(holdouts, settings.gate)
    holdout = holdouts[iteration]
    return {
        "model": settings.register_.name,
        "alias": settings.register_.alias,
        "iteration": iteration,
        "checkpoint": known_digest(models / iteration),
        "holdout": {key: value for key, value in holdout.items() if isinstance(value, int | float)},
    }


def register(
    run: tracking.PipelineRun, result: dict[str, Any], models: Path, holdout: Path
) -> tracking.RegisteredVersion:
    """Register the checkpoint that `result` describes. Raises Unreachable when MLflow does not answer."""
    tags = {
        "iterit.checkpoint": result["checkpoint"],
        "iterit.iteration": result["iteration"],
        HOLDOUT: file_digest(holdout),
    }
    tags |= {f"holdout.{key}": str(value) for key, value in result["holdout"].items()}
    return tracking.register_checkpoint(
        run,
        models / result["iteration"],
        name=result["model"],
        alias=result["alias"],
        tags=tags,
        metrics=result["holdout"],
    )


def pass_gate(
    version: tracking.RegisteredVersion,
    result: dict[str, Any],
    holdout: Path,
    settings: Settings,
    arithmetic: AbstractContextManager[object],
) -> gate.Decision:
    """Make the version the challenger, and the champion if it beats the present one on this holdout."""
    champion = tracking.holder_of(version.model, gate.CHAMPION)
    if champion is not None and champion.number == version.version:
        decision = gate.Decision(True, "is the champion already", result["holdout"], None, version.version, False)
    elif champion is None:
        decision = gate.decide(result["holdout"], None, settings.gate)
    else:
        again = champion.tags.get(HOLDOUT) != file_digest(holdout)
        if again:
            figures = evaluate_again(version.model, champion.number, holdout, settings, arithmetic)
        else:
            figures = {name: float(champion.tags[f"holdout.{name}"]) for name in settings.gate.metrics}
        decision = gate.decide(
            result["holdout"], figures, settings.gate, champion_version=champion.number, evaluated_again=again
        )
    tracking.set_alias(version.model, gate.CHALLENGER, version.version)
    tracking.tag_version(version.model, version.version, {"iterit.gate": json.dumps(decision.as_dict())})
    if decision.promoted:
        tracking.promote(version.model, version.version, "gate")
    return decision


def evaluate_again(
    name: str, number: str, holdout: Path, settings: Settings, arithmetic: AbstractContextManager[object]
) -> dict[str, Any]:
    """The champion on a holdout that it was not evaluated on: it is fetched from the registry."""
    from components.evaluate import measure
    from components.model import load_model
    from components.records import read_records

    with tempfile.TemporaryDirectory(dir=SCRATCH) as place:
        folder = tracking.download_version(name, number, Path(place))
        model, tokenizer = load_model(folder, settings.score.dtype)
        what = f"evaluate {name} version {number} again"
        return measure(model, tokenizer, read_records(holdout), settings.score, what, arithmetic)


def promote_by_hand(number: str) -> str:
    """Make a version the champion, and say what changed. Raises UserError for a version that is not there."""
    name = load_settings().register_.name
    if not tracking.has_version(name, number):
        raise UserError(f"{name} has no version {number}")
    before = tracking.promote(name, number, "hand")
    return f"{name} version {number} is the champion" + (f"; before it was version {before}" if before else "")


def roll_back() -> str:
    """Make the previous champion the champion again. Raises UserError when there is none."""
    name = load_settings().register_.name
    previous = tracking.holder_of(name, gate.PREVIOUS)
    if previous is None:
        raise UserError(f"{name} has no previous champion")
    return promote_by_hand(previous.number)


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
    parser.add_argument("--holdout", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    with stage("register") as arithmetic:
        settings = load_settings()
        begun = time.monotonic()
        result = describe_checkpoint(settings, options.models, options.metrics)
        flow_run = os.environ.get(RUN_VARIABLE)
        if flow_run:
            run = tracking.open_pipeline_run(flow_run)
        else:
            run = tracking.start_pipeline_run(settings, started=begin_of_dvc())
        tracking.record_all(run, settings, except_for=["register"])
        version = register(run, result, options.models, options.holdout)
        decision = pass_gate(version, result, options.holdout, settings, arithmetic)
        tables.write_json(options.result, result)
        entry = tracking.make_entry(["experiment", "register", "gate", "iterations"], options.result)
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
                "gate": decision.as_dict(),
                "run_id": run.run_id,
                "url": run.url,
            },
        )
        done = "registered" if version.is_new else "already registered, not again"
        print(f"register: {version.model} version {version.version}: {done}; alias {result['alias']}")
        print(f"gate: {'champion' if decision.promoted else 'not the champion'}: {decision.reason}")


if __name__ == "__main__":
    main()
