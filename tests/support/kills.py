"""Kills a stage right after each of its renames, links, removals and fsyncs, and lets it run again, as DVC would.

A table for a project in which everything has run once (ten minutes with the small model of the tests):

    python -m tests.support.kills FOLDER [STAGE ...]
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from components.provenance.digests import digest_of
from components.provenance.pipeline import StageDefinition, find_stage

SOURCE = Path(__file__).with_name("kill_after.c")


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
    main(sys.argv[1], sys.argv[2:])
