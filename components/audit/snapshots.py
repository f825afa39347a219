"""The project's history as the audit reads it: the workspace, and every commit that changed dvc.lock.

Statements, dvc.lock and git's history are the only sources. The index in .iterit/audit.sqlite is made from them.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.audit.measure import measure
from components.core.errors import UserError
from components.core.paths import LOCK, SCRATCH
from components.provenance.lockfile import StageEntry, parse_lock, text_md5
from components.provenance.pipeline import FOLDER
from components.provenance.recorded import Digests, RecordedStage, parse_statement
from components.provenance.statements import BUNDLE, read_bundle

WORKSPACE = "workspace"
CACHE = Path(".dvc/cache/files/md5")


@dataclass(frozen=True)
class Snapshot:
    """The project at one time: `ref` is a git commit, or WORKSPACE for the files as they are now."""

    ref: str

    @property
    def iterations(self) -> list[str]:
        """Keys of the iterations that were trained, in order."""
        keys = (stage.partition("@")[2] for stage in self.stages if stage.startswith("finetune@"))
        return sorted(keys, key=int)

    def stage(self, name: str) -> RecordedStage:
        """The stage as its statement describes it. Raises UserError when there is no statement."""
        if name not in self.stages:
            raise UserError(f"{FOLDER}/{name}.json ({self.ref}): no statement; `dvc repro {name}` writes it")
        return self.stages[name]

    @functools.cached_property
    def stages(self) -> Mapping[str, RecordedStage]:
        """Every stage that has a statement. Raises UserError for a file that is not a statement."""
        recorded = {}
        for path, text in self.statement_texts.items():
            try:
                stage = parse_statement(json.loads(text))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path} ({self.ref}): not a statement: {error}") from error
            recorded[stage.name] = stage
        return recorded

    @functools.cached_property
    def statement_texts(self) -> Mapping[str, str]:
        """Path of each statement -> its text: the workspace's file, or what dvc.lock names, bundled or in DVC's cache.

        A commit made by hand after `dvc repro` has no bundle, or the bundle of an earlier run.
        """
        if self.ref == WORKSPACE:
            files = [path.as_posix() for path in sorted(Path(FOLDER).glob("*.json"))]
            return {file: self.read(file) for file in files}
        texts = {}
        for path in sorted(path for path in self.hashes if path.startswith(f"{FOLDER}/")):
            text = self._bundle.get(path, "")
            if text_md5(text.encode()) == self.hashes[path]:
                texts[path] = text
            elif file := self._fetch(path):
                texts[path] = file.read_text(encoding="utf-8")
        return texts

    @functools.cached_property
    def _bundle(self) -> Mapping[str, str]:
        try:
            return read_bundle(self.read(BUNDLE)) if self.has(BUNDLE) else {}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{BUNDLE} ({self.ref}): not a bundle of statements: {error}") from error

    @property
    def is_lost(self) -> bool:
        """Whether dvc.lock names statements that are neither in git, nor in DVC's cache, nor on its remote."""
        return not self.statement_texts and any(path.startswith(f"{FOLDER}/") for path in self.hashes)

    @functools.cached_property
    def hashes(self) -> Mapping[str, str]:
        """Path of each output in dvc.lock -> DVC's MD5."""
        return {path: md5 for entry in self.lock.values() for path, md5 in entry.outputs.items()}

    @functools.cached_property
    def lock(self) -> Mapping[str, StageEntry]:
        """Stage -> entry of dvc.lock. Raises UserError when the file is missing or not a lock file."""
        return parse_lock(self.read(LOCK.as_posix()))

    def read(self, path: str) -> str:
        """The text of a small file that git holds. Raises UserError when it is not there."""
        try:
            return self.content(path).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} ({self.ref}): not text: {error}") from error

    def content(self, path: str) -> bytes:
        """The bytes of a small file that git holds. Raises UserError when it is not there."""
        try:
            if self.ref == WORKSPACE:
                return Path(path).read_bytes()
            return subprocess.run(["git", "show", in_git(self.ref, path)], capture_output=True, check=True).stdout
        except (FileNotFoundError, subprocess.CalledProcessError):
            raise UserError(f"{path}: not found ({self.ref})") from None

    def has(self, path: str) -> bool:
        """Whether the workspace has the path, or git has it in the commit."""
        if self.ref == WORKSPACE:
            return Path(path).exists()
        command = ["git", "cat-file", "-e", in_git(self.ref, path)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def recorded_digest(self, path: str) -> str | None:
        """The digest that the stage which wrote `path` recorded; None for a path that no stage wrote."""
        return self._outputs[path].digest if path in self._outputs else None

    def recorded_digests(self, path: str) -> Digests | None:
        """recorded_digest, and the dirHash of a folder."""
        return self._outputs.get(path)

    @functools.cached_property
    def _outputs(self) -> Mapping[str, Digests]:
        return {path: digests for stage in self.stages.values() for path, digests in stage.outputs.items()}

    def find(self, path: str) -> Path | None:
        """A file or folder with its bytes of that time, from the workspace, DVC's cache or its remote; None without."""
        if self.ref == WORKSPACE:
            return Path(path) if Path(path).exists() else None
        here = measure(Path(path))
        if here and here.digest == self.recorded_digest(path):
            return Path(path)
        return self._fetch(path)

    def _fetch(self, path: str) -> Path | None:
        """What dvc.lock names: a file of DVC's cache, or a copy of a cached folder or of what is only on the remote."""
        md5 = self.hashes.get(path)
        if md5 is None:
            return None
        cached = CACHE / md5[:2] / md5[2:]
        if cached.is_file() and not md5.endswith(".dir"):
            return cached
        from dvc.exceptions import DvcException
        from dvc.repo.data import DataIndexDirError  # raised for a folder that neither cache nor remote has

        copy = Path(tempfile.mkdtemp(dir=_scratch())) / Path(path).name
        try:
            self._files.get(_below_root() + path, str(copy), recursive=md5.endswith(".dir"))
        except (DvcException, DataIndexDirError, OSError):
            return None
        return copy

    @functools.cached_property
    def _files(self) -> Any:
        from dvc.api import DVCFileSystem

        return DVCFileSystem(".", rev=self.ref, subrepos=bool(_below_root()))


def _below_root() -> str:
    """The project's folder as a path below git's root, where DVC's view of a commit begins: `` or `sub/`."""
    return git("rev-parse", "--show-prefix").strip()


@functools.cache
def _scratch() -> Path:
    """A folder for copies, which is removed when this process ends."""
    SCRATCH.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=SCRATCH.absolute(), prefix="audit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def in_git(ref: str, path: str) -> str:
    """Git's name of a file in a commit; the path is from the project's folder, which may be below git's root."""
    return f"{ref}:./{path}"


def git(*arguments: str) -> str:
    """What git prints. Raises CalledProcessError when it fails, as it does outside a repository."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def commits() -> list[str]:
    """The commits that changed dvc.lock, newest first; empty outside a git repository."""
    try:
        return git("log", "--all", "--format=%H", "--", LOCK.as_posix()).split()
    except subprocess.CalledProcessError:
        return []


def snapshots() -> Iterator[Snapshot]:
    """The workspace, then the commits, newest first."""
    yield Snapshot(WORKSPACE)
    for commit in commits():
        yield Snapshot(commit)
