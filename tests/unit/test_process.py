"""A process ends with the one that it works for, and two processes never run one stage in one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.core.process import PARENT, name_as_parent

FOLLOW = "from components.core.process import die_with_parent; die_with_parent(); print('on', flush=True); input()"
STAGE = "from components.core.stage import stage\nwith stage('select', '1'):\n print('on', flush=True)\n input()"


def start(code: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: subprocess.Popen[str]) -> int:
    return process.wait(timeout=20)


def test_a_process_whose_parent_has_ended_before_it_asked_ends_at_once(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    name = f"{gone.pid}:1"
    gone.wait()
    assert wait(start(FOLLOW, tmp_path, **{PARENT: name})) == -signal.SIGKILL


def test_a_process_number_that_was_given_away_again_is_not_taken_for_the_parent(tmp_path: Path) -> None:
    pid, _, started = name_as_parent()[PARENT].partition(":")
    assert wait(start(FOLLOW, tmp_path, **{PARENT: f"{pid}:{int(started) - 1}"})) == -signal.SIGKILL


def test_a_process_ends_as_soon_as_the_one_that_it_works_for(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = Path(f"/proc/{parent.pid}/stat").read_text().rpartition(")")[2].split()[19]
    child = start(FOLLOW, tmp_path, **{PARENT: f"{parent.pid}:{started}"})
    assert child.stdout
    assert child.stdout.readline() == "on\n"
    assert child.poll() is None
    parent.kill()
    parent.wait()
    assert wait(child) == -signal.SIGKILL


def test_a_second_process_of_a_stage_ends_with_one_line_and_the_first_goes_on(tmp_path: Path) -> None:
    first = start(STAGE, tmp_path)
    assert first.stdout
    assert first.stdout.readline() == "on\n"
    second = subprocess.run([sys.executable, "-c", STAGE], cwd=tmp_path, capture_output=True, text=True)
    assert (second.returncode, second.stdout) == (75, "")
    reason = f"another process is running this stage here (process {first.pid}); run again when it has ended"
    assert second.stderr == f"error: select@1: {reason}\n"
    first.communicate("\n", timeout=20)
    assert first.returncode == 0
    assert subprocess.run([sys.executable, "-c", STAGE], cwd=tmp_path, input="\n", text=True).returncode == 0


@pytest.mark.parametrize("number", range(3))
def test_a_killed_stage_leaves_no_lock_behind(tmp_path: Path, number: int) -> None:
    first = start(STAGE, tmp_path)
    assert first.stdout
    assert first.stdout.readline() == "on\n"
    time.sleep(0.02 * number)
    first.kill()
    first.wait()
    assert subprocess.run([sys.executable, "-c", STAGE], cwd=tmp_path, input="\n", text=True).returncode == 0


def test_a_full_disk_ends_a_stage_with_one_line(tmp_path: Path) -> None:
    code = (
        "import resource, pathlib\nfrom components.core.stage import stage\n"
        "from components.core.files import write_json\n"
        "with stage('select', '1'):\n"
        " resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        " write_json(pathlib.Path('a.json'), {'text': 'x' * 5000})"
    )
    stage = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert stage.returncode == 2
    assert stage.stderr.startswith("error: select@1: a file could not be written: File too large (")
    assert stage.stderr.endswith("make room and run again\n")
    assert stage.stderr.count("\n") == 1
    assert not (tmp_path / "a.json").exists()
