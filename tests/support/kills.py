"""Kills a stage right after each of its renames, links, removals and fsyncs, and lets it run again, as DVC would.

A table for a project in which everything has run once (ten minutes with the small model of the tests):

    python -m tests.support.kills FOLDER [STAGE ...]
    python -m tests.support.kills FOLDER flow [EVERY]

The second command kills `iterit run` where only `register` and the seal are left, after every EVERY-th such call of
its own, of its DVC, of git, and every transaction of MLflow's store; then it runs again.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from components.provenance.digests import digest_of
from components.provenance.pipeline import StageDefinition, find_stage
from components.provenance.statements import BUNDLE
from tests.support.project import at_work_in, call, hashes, start, wait_for

SOURCE = Path(__file__).with_name("kill_after.c")
TAG = "iterit/iterit/v1"
RUNNING = {  # store -> question how many runs still look as if they were going on
    "mlflow.db": "select count(*) from runs where status = 'RUNNING'",
    ".prefect/prefect.db": "select (select count(*) from flow_run where state_type in ('RUNNING', 'PENDING'))"
    " + (select count(*) from task_run where state_type in ('RUNNING', 'PENDING'))",
}


@dataclass(frozen=True)
class Kill:
    """One kill and what the next start of the stage made."""

    stage: str
    number: int
    call: str
    """`rename models/1`."""
    exit_code: int
    """Of the stage that ran again."""
    changed: list[str]
    """Outputs that are others than without a kill."""

    @property
    def harmless(self) -> bool:
        return self.exit_code == 0 and not self.changed


def build_library(folder: Path) -> Path:
    """Compile the library that kills."""
    library = folder / "kill_after.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def kill_everywhere(project: Path, name: str, library: Path, *, every: int = 1) -> Iterator[Kill]:
    """Kill the stage after each `every`-th call, and compare what it makes when it is started again."""
    with chdir(project):
        stage = find_stage(name)
        wanted = {path: digest_of(Path(path)) for path in stage.outputs}
        calls = _run(project, stage, library)[1]
        assert {path: digest_of(Path(path)) for path in stage.outputs} == wanted, (
            "the stage gives other bytes by itself"
        )
        for number in range(1, len(calls) + 1, every):
            exit_code, _ = _run(project, stage, library, kill_after=number)
            assert exit_code == -signal.SIGKILL, f"{name} was not killed after call {number}: it ended with {exit_code}"
            exit_code, _ = _run(project, stage, library, fresh=False)
            changed = [
                path for path in stage.outputs if not Path(path).exists() or digest_of(Path(path)) != wanted[path]
            ]
            yield Kill(name, number, calls[number - 1], exit_code, changed)


@dataclass(frozen=True)
class FlowKill:
    """One kill of the flow, and what is wrong after the next run."""

    number: int
    call: str
    mistakes: list[str]


def unregister(project: Path) -> None:
    """Make a project after its first run what it was before `register`: no version, no record, no commit, no tag."""
    _git(project, "tag", "--delete", *_git(project, "tag").split())
    _git(project, "reset", "--quiet", "HEAD~1")
    yaml = YAML()
    lock = yaml.load(project / "dvc.lock")
    del lock["stages"]["register"]
    yaml.dump(lock, project / "dvc.lock")
    for name in ("metrics/register.json", "provenance/register.json", ".iterit/registered.json", "mlflow.db", BUNDLE):
        (project / name).unlink()
    shutil.rmtree(project / "mlruns")
    # MLflow makes its tables once, for all copies
    make_store = "from components.tracking.client import client; client().search_experiments()"
    call(project, sys.executable, "-c", make_store)


def kill_flow(project: Path, library: Path, numbers: Iterable[int], place: Path) -> Iterator[FlowKill]:
    """Kill the flow after its n-th call for each n of `numbers`, run it again, and look at what it has left.

    `project`: as `unregister` leaves it; each kill has a copy of it in `place`. Ends at a number that is not reached.
    """
    wanted = hashes(_whole(project, place))
    for number in numbers:
        copy = place / f"kill{number}"
        shutil.copytree(project, copy, symlinks=True)
        log = place / f"calls{number}"
        settings = {"KILL_FOLDER": f"{copy.resolve()}/", "KILL_LOG": str(log), "KILL_AFTER": str(number)}
        # the shell becomes the flow, whose process id it is
        command = f"KILL_PID=$$ LD_PRELOAD={library} exec python -m flows.cli run"
        flow = start(copy, ["sh", "-c", command], **settings)
        printed = flow.communicate(timeout=300)[0]
        if flow.returncode == 0:
            return
        assert flow.returncode == -signal.SIGKILL, printed
        wait_for(lambda folder=copy: not at_work_in(folder), seconds=30)  # type: ignore[misc]
        calls = log.read_text().splitlines()
        again = start(copy, ["python", "-m", "flows.cli", "run"])
        printed = again.communicate(timeout=300)[0]
        mistakes = [] if again.returncode == 0 else [f"exit code {again.returncode}: {printed[-2000:]}"]
        mistakes += [] if "Traceback" not in printed else ["a traceback"]
        yield FlowKill(number, calls[number - 1].replace(f"{copy.resolve()}/", ""), [*mistakes, *_left(copy, wanted)])
        shutil.rmtree(copy)


def _whole(project: Path, place: Path) -> Path:
    """A copy of the project that has run to its end."""
    copy = Path(shutil.copytree(project, place / "whole", symlinks=True))
    call(copy, "python", "-m", "flows.cli", "run")
    return copy


def _left(project: Path, wanted: dict[str, str]) -> Iterator[str]:
    """What is not as a run without a kill leaves it."""
    if hashes(project) != wanted:
        yield "other hashes in dvc.lock"
    if not _git(project, "log", "-1", "--format=%s").startswith("Retrain: "):
        yield "not committed"
    elif _git(project, "log", "--format=%s").count("Retrain: ") != 1:
        yield "committed twice"
    if _git(project, "rev-list", "-1", TAG, "--", check=False) != _git(project, "rev-parse", "HEAD"):
        yield "not tagged"
    if changes := _git(project, "status", "--porcelain"):
        yield f"not clean: {changes}"
    for database, question in RUNNING.items():
        with sqlite3.connect(project / database) as store:
            if count := store.execute(question).fetchone()[0]:
                yield f"{count} RUNNING in {database}"
    with sqlite3.connect(project / "mlflow.db") as store:
        aliases = dict(store.execute("select alias, version from registered_model_aliases").fetchall())
        versions = [number for (number,) in store.execute("select version from model_versions").fetchall()]
    if not aliases or not set(aliases.values()) <= set(versions):
        yield f"aliases {aliases} of versions {versions}"
    if len(versions) != 1:
        yield f"versions {versions}"


def _git(project: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True, check=check)
    return done.stdout.strip()


def _run(
    project: Path, stage: StageDefinition, library: Path, *, kill_after: int = 0, fresh: bool = True
) -> tuple[int, list[str]]:
    """Exit code and calls. `fresh`: nothing is known from an earlier start, as on a first run."""
    for path in map(Path, stage.outputs):  # DVC removes a stage's outputs before it runs it
        if not path.name.startswith("register"):  # but those that persist
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if fresh:
        shutil.rmtree(".iterit/scores", ignore_errors=True)
        shutil.rmtree(f".iterit/tmp/{stage.name}", ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "calls"
        kill = {"KILL_FOLDER": f"{project.resolve()}/", "KILL_LOG": str(log), "KILL_AFTER": str(kill_after)}
        command = [sys.executable, *shlex.split(stage.command)[1:]]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "ITERIT"))}
        done = subprocess.run(
            command, env={**environment, **kill, "LD_PRELOAD": str(library)}, capture_output=True, text=True
        )
        calls = log.read_text().splitlines() if log.is_file() else []
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, [call.replace(f"{project.resolve()}/", "") for call in calls]


def main_flow(folder: str, every: int) -> None:
    """The table of `kill_flow` for a copy of a project that has run once."""
    with tempfile.TemporaryDirectory() as place:
        project = Path(shutil.copytree(folder, Path(place) / "project", symlinks=True))
        unregister(project)
        counts: Counter[bool] = Counter()
        for kill in kill_flow(project, build_library(Path(place)), range(1, 10_000, every), Path(place)):
            counts[not kill.mistakes] += 1
            print(f"{kill.number:4} {kill.call}: {'; '.join(kill.mistakes) or 'healed'}", flush=True)
    print(f"flow: {counts.total()} kills, {counts[False]} with mistakes afterwards")
    sys.exit(bool(counts[False]))


def main(folder: str, names: Sequence[str]) -> None:
    project = Path(folder)
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        library = build_library(Path(place))
        for name in names:
            kills = list(kill_everywhere(project, name, library))
            harmful = [kill for kill in kills if not kill.harmless]
            bad += len(harmful)
            print(f"{name:22} {len(kills):4} kills, {len(harmful)} with other results afterwards", flush=True)
            for kill in harmful:
                print(
                    f"    after {kill.number} ({kill.call}): exit {kill.exit_code}, changed {kill.changed}", flush=True
                )
    sys.exit(bool(bad))


if __name__ == "__main__":
    if sys.argv[2:3] == ["flow"]:
        main_flow(sys.argv[1], int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    main(sys.argv[1], sys.argv[2:])
