"""The DVC process of a run goes on after whatever a killed one has left."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.dvc_worker import answer, remove_broken_rwlock, restore_broken_lock

WHOLE = b'{"write": {}, "read": {}}'


@pytest.mark.parametrize("left", [b"", b'{"write": {"a', b"\xff", WHOLE, None])
def test_half_a_list_of_the_paths_in_use_stops_no_later_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bytes | None
) -> None:
    monkeypatch.chdir(tmp_path)
    with Repo.init(no_scm=True) as repo:
        Path("dvc.yaml").write_text("stages: {made: {cmd: touch made, outs: [made]}}")
        listed = Path(".dvc/tmp/rwlock")
        if left is not None:
            listed.write_bytes(left)
        remove_broken_rwlock(repo)
        assert listed.exists() == (left == WHOLE)
        assert "error" not in answer(repo, {"do": "reproduce", "stage": "made"})
    assert Path("made").exists()


LOCKED = """schema: '2.0'
stages:
  made:
    cmd: touch made
    outs:
    - path: made
      hash: md5
      md5: d41d8cd98f00b204e9800998ecf8427e
      size: 1024
"""


@pytest.mark.parametrize("written", [0, 20, 60, 150, len(LOCKED) - 3, len(LOCKED)])
@pytest.mark.parametrize("committed", [True, False])
def test_half_a_lock_file_is_replaced_by_the_committed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], written: int, committed: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    before = LOCKED.replace("1024", "1023")
    Path("dvc.lock").write_text(before)
    Path("other").touch()
    subprocess.run([*git, "add", "other", *(["dvc.lock"] if committed else [])], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "start"], check=True)
    Path("dvc.lock").write_text(LOCKED[:written])
    restore_broken_lock()
    whole = written == len(LOCKED)
    assert ("half written" in capsys.readouterr().out) is not whole
    if whole:
        assert Path("dvc.lock").read_text() == LOCKED
    elif committed:
        assert Path("dvc.lock").read_text() == before
    else:
        assert not Path("dvc.lock").exists()
    assert whole or Path(".iterit/dvc.lock.broken").read_text() == LOCKED[:written]


def test_a_merge_that_is_not_resolved_is_left_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    merged = f"<<<<<<< HEAD\n{LOCKED}=======\n{LOCKED}>>>>>>> other\n"
    Path("dvc.lock").write_text(merged)
    restore_broken_lock()
    assert Path("dvc.lock").read_text() == merged
