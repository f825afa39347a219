"""Files and folders are published whole, and whatever they are made from stays as it is."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from components.core.files import link_or_copy, publish_folder


@pytest.fixture
def other_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to which the system refuses hard links, as it does to another file system."""
    folder, link = tmp_path / "other", os.link
    folder.mkdir()

    def refuse(source: str | Path, target: str | Path) -> None:
        if Path(target).is_relative_to(folder):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(source, target)

    monkeypatch.setattr(os, "link", refuse)
    return folder


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
