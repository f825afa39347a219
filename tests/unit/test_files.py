"""Files and folders are published whole, and whatever they are made from stays as it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.core.files import link_or_copy, publish_folder


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder of another file system than `tmp_path`."""
    if not os.access("/dev/shm", os.W_OK) or Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def make_folder(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_bytes(b"new")
    (folder / "deep/config").write_bytes(b"{}")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_published_folder_can_be_published_again_because_nothing_is_taken_from_it(tmp_path: Path) -> None:
    folder, place = make_folder(tmp_path / "scratch"), tmp_path / "models" / "1"
    expected = content(folder)
    for _ in range(2):
        publish_folder(folder, place)
        assert content(folder) == content(place) == expected
    (tmp_path / "models/.1.partial").mkdir()
    (tmp_path / "models/.1.partial/half").touch()  # what a killed stage leaves
    (place / "old").touch()
    publish_folder(folder, place)
    assert content(place) == expected
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["1"]


def test_a_folder_is_published_to_another_disk_by_copying_it(tmp_path: Path, other_disk: Path) -> None:
    folder = make_folder(tmp_path / "scratch")
    publish_folder(folder, other_disk / "1")
    assert content(other_disk / "1") == content(folder)


def test_a_link_that_is_refused_for_another_reason_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.touch()
    shutil.copyfile(source, tmp_path / "b")
    with pytest.raises(FileExistsError):
        link_or_copy(source, tmp_path / "b")
