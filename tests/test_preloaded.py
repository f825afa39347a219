"""Preloaded stages: a command's work is done by a copy, which ends with it, and says what the command would say."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from components.preloaded import ABSTRACT, HELLO, SOCKET
from components.records import Message, Record, make_record, write_records
from tests.project import call, edit_params, finetune_command, make_project, start, wait_for

KEEP = """
import os, sys
from components import preloaded
preloaded.start()
print(os.environ[preloaded.SOCKET], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    place = make_project(tmp_path_factory.mktemp("preloaded"), small_model)
    records = [record(f"Say {word}.", f"{word} " * 9) for word in ("one", "two", "three", "four")]
    write_records(place / "holdout.parquet", records)
    write_records(place / "data/iterations/1/subset.parquet", records * 50)
    (place / "models").mkdir()
    (place / "models/base").symlink_to(small_model)
    write_records(place / "empty.parquet", [record("Say nothing.", " ")])
    (place / "dvc.yaml").unlink()  # its statements are not what is tested here
    (place / "state/base").mkdir(parents=True)
    (place / "state/base/progress.json").write_text('{"step": 0, "steps_per_iteration": null}')
    edit_params(place, {"score": {"max_misaligned_share": 1.0}})
    return place


def record(prompt: str, response: str) -> Record:
    return make_record("test", [Message("user", prompt), Message("assistant", response)])


@pytest.fixture
def preloaded(project: Path) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """The process, and the setting by which commands find it."""
    process = subprocess.Popen(
        [sys.executable, "-c", KEEP],
        cwd=project,
        env={**os.environ, "RANK": "0", "WORLD_SIZE": "2"},  # of somebody else's launcher: not to be waited for
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    setting = {SOCKET: process.stdout.readline().strip()}
    (child,) = psutil.Process(process.pid).children()
    with socket.socket(socket.AF_UNIX) as command:  # otherwise the commands would do the work, and the tests pass
        command.settimeout(60)
        command.connect(ABSTRACT + setting[SOCKET])
        assert command.recv(1) == HELLO
    yield child, setting
    process.communicate()


def evaluate(small_model: Path, holdout: str = "holdout.parquet") -> list[str]:
    options = {
        "iteration": "base",
        "holdout": holdout,
        "model": str(small_model),
        "samples": "samples.json",
        "metrics": "metrics.json",
    }
    return [sys.executable, "-m", "components.evaluate", *(f"--{name}={value}" for name, value in options.items())]


def test_a_copy_writes_and_says_what_the_command_would(
    project: Path, small_model: Path, preloaded: tuple[psutil.Process, dict[str, str]]
) -> None:
    printed, written = [], []
    for settings in (preloaded[1], {}):
        printed.append(call(project, *evaluate(small_model), **settings))
        written.append([(project / name).read_bytes() for name in ("samples.json", "metrics.json")])
        (project / "metrics.json").unlink()
    assert "evaluate " in printed[0]
    assert printed[0] == printed[1]
    assert written[0] == written[1]
    assert json.loads(written[0][1])["records"] == 4


def test_a_mistake_is_the_same_line_and_exit_code(
    project: Path, small_model: Path, preloaded: tuple[psutil.Process, dict[str, str]]
) -> None:
    output = call(project, *evaluate(small_model, "empty.parquet"), expect=2, **preloaded[1])
    assert output.splitlines()[-1].startswith("error: data/holdout.parquet: no record of the holdout can be scored")
    assert "Traceback" not in output


def test_the_copy_ends_with_its_command_and_the_command_with_the_process(
    project: Path, preloaded: tuple[psutil.Process, dict[str, str]]
) -> None:
    steps = project / ".iterit/tmp/finetune@1/steps.jsonl"
    process, setting = preloaded
    for killed in ("command", "process"):
        steps.unlink(missing_ok=True)
        command = start(project, finetune_command(1, "base"), **setting)
        wait_for(steps.is_file, command)
        # the work is the copy's: the command itself has not even loaded torch
        assert not has_torch(command)
        (copy,) = process.children()
        if killed == "command":
            command.kill()
        else:
            process.kill()
            assert "the process that the stage was a copy of has ended; run again" in command.communicate()[0]
            assert command.returncode == 1
        wait_for(lambda copy=copy: not copy.is_running() or copy.status() == psutil.STATUS_ZOMBIE, seconds=20)
        command.wait()
        assert not (project / "models/1").exists()


def test_code_that_was_edited_meanwhile_runs_in_the_command_itself(
    project: Path, small_model: Path, preloaded: tuple[psutil.Process, dict[str, str]]
) -> None:
    process, setting = preloaded
    call(project, *evaluate(small_model), **setting)  # it has imported everything
    with (project / "components/gate.py").open("a") as file:
        file.write("\n")
    command = start(project, finetune_command(1, "base"), **setting)
    wait_for(lambda: has_torch(command), command)
    assert not process.children()
    command.kill()
    command.wait()


def has_torch(command: subprocess.Popen[str]) -> bool:
    return any("libtorch" in mapped.path for mapped in psutil.Process(command.pid).memory_maps())


def test_without_such_a_process_the_command_does_the_work(project: Path, small_model: Path) -> None:
    assert "evaluate " in call(project, *evaluate(small_model), **{SOCKET: "nobody"})
