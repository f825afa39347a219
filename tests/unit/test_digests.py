"""Digests depend on bytes and names, not on the place; a stage may rely on metadata instead of reading again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.provenance import digests
from components.provenance.digests import (
    CACHE,
    LARGE,
    cached_digest,
    digest_set,
    dir_hash,
    file_digest,
    files_of,
    folder_digest,
)
from tests.support.small_model import make_small_model

PROJECT = Path(__file__).parents[2]
# as in-toto's specification of dirHash has it
DIR_HASH = "find . -type f | cut -c3- | LC_ALL=C sort | xargs -r sha256sum | sha256sum | cut -f1 -d' '"


def print_dir_hash(folder: Path) -> str:
    done = subprocess.run(DIR_HASH, shell=True, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_digest_of_a_checkpoint_depends_on_names_and_bytes_only(small_model: Path, tmp_path: Path) -> None:
    same, changed = (make_small_model(tmp_path / name) for name in ("same", "changed"))
    assert folder_digest(same) == folder_digest(small_model)
    (changed / "config.json").rename(changed / "config2.json")
    assert folder_digest(changed) != folder_digest(same)
    (changed / "config2.json").rename(changed / "config.json")
    with (changed / "config.json").open("a") as file:
        file.write("\n")
    assert folder_digest(changed) != folder_digest(same)


def test_the_dir_hash_of_a_checkpoint_is_what_the_shell_computes(small_model: Path) -> None:
    assert digest_set(small_model) == {
        "dirHash": print_dir_hash(small_model),
        "iteritFolder": folder_digest(small_model),
    }


def test_the_dir_hash_of_a_tree_is_what_the_shell_computes(tmp_path: Path) -> None:
    # paths that other orders sort differently: by folder, by locale, without case, by number
    for name in ("a/b", "a.txt", "a-b", "B", "b/c/d", ".hidden", "10", "9", "\u00e9", "\U0001f600", "\uffee", "Z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "same").write_text("a/b")
    assert digest_set(tmp_path)["dirHash"] == print_dir_hash(tmp_path)


def test_the_dir_hash_of_an_empty_folder_is_what_the_shell_computes(tmp_path: Path) -> None:
    assert digest_set(tmp_path)["dirHash"] == dir_hash({}) == print_dir_hash(tmp_path)


def test_byte_code_counts_except_in_folders_of_our_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path("components/data"), Path("models/1"), Path("models/components")):
        folder.mkdir(parents=True)
        (folder / "module.py").write_text("pass\n")
        before = digest_set(folder)
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__/module.pyc").write_bytes(b"x")
        is_code = folder.parts[0] == "components"
        assert list(files_of(folder)) == ["module.py"] if is_code else ["__pycache__/module.pyc", "module.py"]
        assert (digest_set(folder) == before) == is_code
        assert (digest_set(folder.absolute()) == before) == is_code
    assert not [name for name in files_of(PROJECT / "components/audit") if "__pycache__" in name]


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_set(tmp_path / "file") == {"sha256": sha256}


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
    assert json.loads(CACHE.read_text()).keys() == {f"{status.st_dev}:{status.st_ino}"}, "the small file is read"
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


def test_a_damaged_cache_changes_no_digest(large: Path) -> None:
    expected = cached_digest(large)
    for damaged in ("{ damaged", "[]", json.dumps({f"{large.stat().st_dev}:{large.stat().st_ino}": "x"})):
        CACHE.write_text(damaged)
        assert cached_digest(large) == expected


def test_several_processes_may_compute_the_same_digest_at_once(large: Path) -> None:
    for name in "abcdef":
        (large.parent / name).write_bytes(name.encode() * LARGE)
    expected = folder_digest(large.parent)
    program = "from components.provenance.digests import *; print(cached_digest(Path('model')))"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in started] == [expected] * 4
    assert cached_digest(large.parent) == expected
    assert [file.name for file in CACHE.parent.iterdir()] == [CACHE.name]
