"""A project as a user has it: the tracked files in a git and DVC repository of their own, with a small model."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from components.core.paths import PARAMS
from flows.seal import RESULTS

# fixed, so that two projects of the same files have the same commit
WHEN = {"GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}
SOURCE = Path(__file__).parents[2]


@dataclass(frozen=True)
class FinishedRun:
    """A project after `iterit run`, and what that printed."""

    folder: Path
    printed: str


LEFT_BY_A_RUN = tuple(name for name in RESULTS if name != str(PARAMS))

# small enough that a whole run takes well under a minute
SMALL = {
    "ingest": {"docstrings": {"stdlib": {"cap": 900}}},
    "dedupe": {"max_records": 640, "max_holdout": 6, "holdout_share": 0.1},  # scored in five shards
    "score": {"max_length": 128, "max_misaligned_share": 1.0},
    "select": {"ratio": 10, "update_ratio": 2.0},
    "finetune": {"batch_size": 4, "micro_batch_size": 2, "max_length": 128, "learning_rate": 1e-3},
    "evaluate": {"samples": 1, "sample_tokens": 4},
}


def make_project(folder: Path, model: Path) -> Path:
    """Copy the tracked files except the results of a run, set the base model to the folder, and commit."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=SOURCE, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        if name and not name.startswith(("tests/", *LEFT_BY_A_RUN)) and (SOURCE / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(SOURCE / name, folder / name)
    edit_params(folder, {"base_model": {"kind": "folder", "path": str(model)}}, replace=True)
    edit_params(folder, SMALL)
    edit_params(folder, {"iterations": {"1": {"parent": "base"}, "2": {"parent": "1"}}}, replace=True)
    edit_params(folder, {"finetune": {"planned_iterations": 2}})
    for command in (
        ["git", "init", "--quiet", "--initial-branch", "main"],
        ["git", "add", "--all"],
        ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "--message", "start"],
    ):
        subprocess.run(command, cwd=folder, check=True, env={**os.environ, **WHEN})
    return folder


def edit_params(folder: Path, changes: dict[str, Any], *, replace: bool = False) -> None:
    """Change keys of params.yaml, block by block; with `replace`, whole blocks are replaced."""
    yaml = YAML()
    file = folder / PARAMS
    params = yaml.load(file)
    for block, values in changes.items():
        if replace:
            params[block] = values
        else:
            params[block].update(values)
    yaml.dump(params, file)


def environment() -> dict[str, str]:
    """The environment of an activated .venv, without the settings of the test process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "ITERIT_"))
    }
    return {**kept, "PATH": path, "PYTHONPATH": ""}


def start(folder: Path, command: Sequence[str], **settings: str) -> subprocess.Popen[str]:
    """Start a command in the project; its stderr goes to its stdout."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**environment(), **settings},
        # a shell starts tests in the background with SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def call(folder: Path, *command: str, expect: int = 0, **settings: str) -> str:
    """Run a command in the project and return its output; its exit code must be `expect`."""
    process = start(folder, command, **settings)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == expect, f"{' '.join(command)} ended with {process.returncode}:\n{output}"
    return output


def finetune_command(iteration: int, parent: str) -> list[str]:
    """The command of the stage as in dvc.yaml."""
    place = f"data/iterations/{iteration}"
    options = {
        "iteration": iteration,
        "subset": f"{place}/subset.parquet",
        "parent-model": f"models/{parent}",
        "parent-state": f"state/{parent}",
        "model": f"models/{iteration}",
        "state": f"state/{iteration}",
        "steps": f"{place}/steps.csv",
        "metrics": f"metrics/finetune/{iteration}.json",
    }
    return ["python", "-m", "components.finetune", *(f"--{name}={value}" for name, value in options.items())]


def iterit(folder: Path, *arguments: str, expect: int = 0, **settings: str) -> str:
    return call(folder, "python", "-m", "flows.cli", *arguments, expect=expect, **settings)


def hashes(folder: Path) -> dict[str, str]:
    """Path -> MD5 of every output in dvc.lock."""
    stages = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ())}


def task_states(folder: Path) -> dict[str, str]:
    """Task run name -> state name in the newest flow run, from Prefect's database."""
    with sqlite3.connect(folder / ".prefect" / "prefect.db") as database:
        newest = database.execute("select id from flow_run order by created desc limit 1").fetchone()[0]
        return dict(database.execute("select name, state_name from task_run where flow_run_id = ?", [newest]))


def ran(output: str) -> set[str]:
    """The stages that `dvc repro` or `dvc exp run` ran, from its output."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")}


def at_work_in(folder: Path) -> list[str]:
    """Command lines of the processes whose current folder is the project."""
    command_lines = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder:
                command_lines.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return command_lines


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: int = 300) -> None:
    """Return once the condition holds; fails when the process ends before, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
