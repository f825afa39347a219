"""The DVC process of a run goes on after whatever a killed one has left."""

from __future__ import annotations

from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.dvc_worker import answer, remove_broken_rwlock

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
