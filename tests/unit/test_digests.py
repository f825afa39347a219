"""Digests: of the bytes and the names, not the place; and what a stage may believe without reading it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.provenance import digests
from components.provenance.digests import CACHE, LARGE, cached_digest, file_digest, folder_digest
from tests.support.small_model import make_small_model

PROJECT = Path(__file__).parents[2]


def test_the_digest_of_a_checkpoint_sees_names_and_bytes_and_not_the_place(small_model: Path, tmp_path: Path) -> None:
    same, other = (make_small_model(tmp_path / name) for name in ("same", "other"))
    assert folder_digest(same) == folder_digest(small_model)
    (other / "config.json").rename(other / "config2.json")
    assert folder_digest(other) != folder_digest(same)
    (other / "config2.json").rename(other / "config.json")
    with (other / "config.json").open("a") as file:
        file.write("\n")
    assert folder_digest(other) != folder_digest(same)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    file = Path("model/weights")
    file.write_bytes(bytes(LARGE))
    return file


def test_a_large_file_is_read_once_and_again_when_it_was_touched(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(digests, "file_digest", lambda file, real=file_digest: read.append(file) or real(file))
    first = cached_digest(large.parent)
    assert first == cached_digest(large.parent) == folder_digest(large.parent)
    assert read.count(large) == 1
    status = large.stat()
    assert json.loads(CACHE.read_text()).keys() == {f"{status.st_dev}:{status.st_ino}"}, "the small one is read"
    large.parent.rename("renamed")
    assert first == cached_digest(Path("renamed"))
    assert read.count(large) == 1
    assert Path("renamed") / large.name not in read
    Path("renamed").rename(large.parent)
    status = large.stat()
    with large.open("r+b") as file:
        file.write(b"x")
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert first != cached_digest(large.parent) == folder_digest(large.parent)


def test_what_is_known_is_no_more_than_a_help(large: Path) -> None:
    expected = cached_digest(large)
    for damaged in ("{ damaged", "[]", json.dumps({f"{large.stat().st_dev}:{large.stat().st_ino}": "x"})):
        CACHE.write_text(damaged)
        assert cached_digest(large) == expected


def test_several_processes_may_learn_the_same_digest_at_once(large: Path) -> None:
    for name in "abcdef":
        (large.parent / name).write_bytes(name.encode() * LARGE)
    expected = folder_digest(large.parent)
    program = "from components.digests import *; print(cached_digest(Path('model')))"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in started] == [expected] * 4
    assert cached_digest(large.parent) == expected
    assert [file.name for file in CACHE.parent.iterdir()] == [CACHE.name]
