"""The project's history as the audit reads it: the workspace, and every commit that changed dvc.lock.

Nothing here is a source of its own: the statements, dvc.lock and git's history say everything. The index
in .iterit/audit.sqlite only makes the question "where was this record?" fast, and is rebuilt from them.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.errors import UserError
from components.core.paths import LOCK, SCRATCH
from components.provenance.digests import digest_of
from components.provenance.lockfile import StageEntry, parse_lock, text_md5
from components.provenance.pipeline import FOLDER
from components.provenance.statements import BUNDLE, digest_in, read_bundle, stage_of

WORKSPACE = "workspace"


CACHE = Path(".dvc/cache/files/md5")


@dataclass(frozen=True)
class Snapshot:
    """The project at one time: `ref` is a git commit, or WORKSPACE for the files as they lie there."""

    ref: str

    @functools.cached_property
    def statements(self) -> dict[str, dict[str, Any]]:
        """Statement of each stage. Raises UserError for a file that is none."""
        found = {}
        for path, text in self.statement_texts.items():
            try:
                statement = json.loads(text)
                found[stage_of(statement)] = statement
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path} ({self.ref}): not a statement: {error}") from error
        return found

    @functools.cached_property
    def statement_texts(self) -> dict[str, str]:
        """Path of each statement -> its text: the workspace's file, or what dvc.lock names, bundled or in DVC's cache.

        A commit made by hand after `dvc repro` has no bundle, or that of an earlier run.
        """
        if self.ref == WORKSPACE:
            files = [path.as_posix() for path in sorted(Path(FOLDER).glob("*.json"))]
            return {file: self.read(file) for file in files}
        found = {}
        for path in sorted(path for path in self.hashes if path.startswith(f"{FOLDER}/")):
            text = self._bundle.get(path, "")
            if text_md5(text.encode()) == self.hashes[path]:
                found[path] = text
            elif file := self._stored(path):
                found[path] = file.read_text(encoding="utf-8")
        return found

    @functools.cached_property
    def _bundle(self) -> dict[str, str]:
        try:
            return read_bundle(self.read(BUNDLE)) if self.has(BUNDLE) else {}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{BUNDLE} ({self.ref}): not a bundle of statements: {error}") from error

    @property
    def lost(self) -> bool:
        """Whether it has statements, and they are neither in git, in DVC's cache, nor on its remote."""
        return not self.statement_texts and any(path.startswith(f"{FOLDER}/") for path in self.hashes)

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """Path of each output in dvc.lock -> DVC's MD5."""
        return {path: md5 for entry in self.lock.values() for path, md5 in entry.outputs.items()}

    @functools.cached_property
    def lock(self) -> dict[str, StageEntry]:
        """What dvc.lock says of each stage. Raises UserError when it is not there, or no lock file."""
        return parse_lock(self.read(LOCK.as_posix()))

    def read(self, path: str) -> str:
        """A small file that git holds. Raises UserError when it is not there."""
        try:
            return (
                Path(path).read_text(encoding="utf-8") if self.ref == WORKSPACE else git("show", f"{self.ref}:{path}")
            )
        except (FileNotFoundError, subprocess.CalledProcessError):
            raise UserError(f"{path}: not there ({self.ref})") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path} ({self.ref}): not text: {error}") from error

    def has(self, path: str) -> bool:
        if self.ref == WORKSPACE:
            return Path(path).exists()
        return subprocess.run(["git", "cat-file", "-e", f"{self.ref}:{path}"], capture_output=True).returncode == 0

    def recorded_digest(self, path: str) -> str | None:
        """SHA-256 that the stage which wrote `path` has stated; None for what no stage wrote."""
        return self._subjects.get(path)

    @functools.cached_property
    def _subjects(self) -> dict[str, str]:
        return {
            subject["name"]: digest_in(subject) or ""
            for statement in self.statements.values()
            for subject in statement["subject"]
        }

    def find(self, path: str) -> Path | None:
        """The bytes of a file or folder as they were: in the workspace, DVC's cache, or its remote; None without."""
        if self.ref == WORKSPACE:
            return Path(path) if Path(path).exists() else None
        wanted = self.recorded_digest(path)
        if Path(path).exists() and digest_of(Path(path)) == wanted:
            return Path(path)
        return self._stored(path)

    def _stored(self, path: str) -> Path | None:
        """What dvc.lock names: a file of DVC's cache, or a copy of a folder, or of what is on the remote only."""
        md5 = self.hashes.get(path)
        if md5 is None:
            return None
        cached = CACHE / md5[:2] / md5[2:]
        if cached.is_file() and not md5.endswith(".dir"):
            return cached
        from dvc.exceptions import DvcException

        place = Path(tempfile.mkdtemp(dir=_scratch())) / Path(path).name
        try:
            self._files.get(path, str(place), recursive=md5.endswith(".dir"))
        except (DvcException, OSError):
            return None
        return place

    @functools.cached_property
    def _files(self) -> Any:
        from dvc.api import DVCFileSystem

        return DVCFileSystem(".", rev=self.ref)

    @property
    def iterations(self) -> list[str]:
        keys = (stage.partition("@")[2] for stage in self.statements if stage.startswith("finetune@"))
        return sorted(keys, key=int)


@functools.cache
def _scratch() -> Path:
    """For copies; gone when this process ends."""
    SCRATCH.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=SCRATCH.absolute(), prefix="audit-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def commits() -> list[str]:
    """The commits that changed dvc.lock, the newest first."""
    try:
        return git("log", "--all", "--format=%H", "--", "dvc.lock").split()
    except subprocess.CalledProcessError:
        return []


def snapshots() -> Iterator[Snapshot]:
    """The workspace, then the commits, the newest first."""
    yield Snapshot(WORKSPACE)
    for commit in commits():
        yield Snapshot(commit)
