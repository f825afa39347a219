"""Project folders beside the project: a git worktree of its HEAD with parameters of its own, for a cell or a pool.

The sources and models that the parameters name by a relative path are linked in, DVC's cache is the project's. A folder
is known by a digest of what it was made from, so that a killed comparison goes on in it, and a changed one does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from ruamel.yaml import YAML

from components.core.errors import UserError
from components.core.files import atomic_write, link_or_copy, read_json, write_json
from components.core.paths import PARAMS, PIPELINE, SCRATCH
from components.provenance.digests import cached_digest
from components.provenance.pipeline import code_of

STAGES = (  # of a cell
    *("benchmark_data", "base_model", "manifest", "ingest", "dedupe", "evaluate_base"),
    *("score", "select", "finetune", "evaluate", "benchmark"),
)
MARK = SCRATCH / "cell.json"  # in the folder: its digest, written when the folder is complete
_git_lock = Lock()  # git makes one worktree at a time


@dataclass(frozen=True, slots=True)
class CellFolder:
    """A worktree, and the project's folder in it, which is the same unless git's root is above the project."""

    worktree: Path
    project: Path


def check_committed() -> None:
    """Raises UserError when code of the stages is not committed: the folders are made of git's HEAD."""
    changed = _git("status", "--porcelain", "--", *_code()).splitlines()
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(f"{changed[0][3:]}{more}: not committed; a comparison runs what git has: commit it first")


@cache
def head() -> str:
    """The commit that all folders are made of, whatever is committed while they run."""
    return _git("rev-parse", "HEAD")


@cache
def _code_digest() -> str:
    """Digest of the committed code of the stages."""
    prefix = _git("rev-parse", "--show-prefix")
    blobs = _git("rev-parse", *(f"{head()}:{prefix}{name}" for name in _code()))
    return hashlib.sha256(blobs.encode()).hexdigest()


def _code() -> list[str]:
    return [str(PIPELINE), *code_of(STAGES)]


def folder_digest_of(params: Mapping[str, Any]) -> str:
    """SHA-256 of what a folder is made of: code, parameters and the files that they name."""
    files = {str(path): _digest_at_start(path) for path in local_paths(params)}
    text = json.dumps([_code_digest(), params, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _digest_at_start(path: Path) -> str:
    """The digest of a source or model, read once in a process: every cell is made of the same."""
    return cached_digest(path)


def local_paths(params: Mapping[str, Any]) -> list[Path]:
    """The files and folders of the project that the parameters name by a relative path.

    Raises UserError for one that leads out of the project, where the folder of a cell would not find it.
    """
    found = []
    for key, value in _texts(params):
        path = Path(value)
        if path.is_absolute() or not value.strip() or path == Path() or "\0" in value or not _exists(path):
            continue
        if ".." in path.parts:
            raise UserError(f"{PARAMS}: {key}: {value}: leads out of the project; a comparison needs its absolute path")
        found.append(path)
    return sorted(set(found))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text that is too long for a path
        return False


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and text of every text in the parameters."""
    if isinstance(value, str):
        yield key, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in items:
        yield from _texts(one, f"{key}.{name}".lstrip("."))


def open_folder(place: Path, params: Mapping[str, Any]) -> CellFolder:
    """The folder at `place`, as it was left where it was made of the same, and otherwise made anew."""
    digest = folder_digest_of(params)
    folder = CellFolder(place, place / _git("rev-parse", "--show-prefix"))
    mark = folder.project / MARK
    if mark.is_file() and read_json(mark)["digest"] == digest:
        return folder
    remove_folder(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    with _git_lock:
        _git("worktree", "add", "--quiet", "--detach", str(place), head())
    _use_cache(folder.project)
    for path in local_paths(params):
        bring(path, folder.project / path)
    write_params(folder.project, params)
    write_json(mark, {"digest": digest})
    return folder


def write_params(project: Path, params: Mapping[str, Any]) -> None:
    """Write params.yaml of a folder."""
    with atomic_write(project / PARAMS) as temporary, temporary.open("w", encoding="utf-8") as file:
        YAML().dump(dict(params), file)


def remove_folder(place: Path) -> None:
    """Remove the worktree at `place`, whatever is left of it."""
    shutil.rmtree(place, ignore_errors=True)
    with _git_lock:
        _git("worktree", "prune")


def bring(path: Path, target: Path) -> None:
    """Link a file, or the files of a folder, to another place; what has that name there is replaced."""
    if path.is_dir():
        shutil.copytree(path, target, copy_function=_replace, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, target)


def _replace(source: str | Path, target: str | Path) -> None:
    Path(target).unlink(missing_ok=True)
    link_or_copy(source, target)


def _use_cache(project: Path) -> None:
    """Give the folder the project's remotes and cache; hard links keep a model from being there twice."""
    from dvc.config import Config

    own = Path(".dvc/config.local")
    if own.is_file():
        shutil.copyfile(own, project / own)
    with Config(str((project / ".dvc").absolute())).edit("local") as config:
        config["cache"] |= {"dir": _cache_dir(), "type": ["hardlink", "copy"]}


@cache
def _cache_dir() -> str:
    """What `dvc cache dir` prints, as an absolute path."""
    from dvc.repo import Repo

    with Repo(os.curdir) as repo:
        return str(repo.cache.local_cache_dir)


def record_experiment(folder: CellFolder, name: str, message: str) -> str:
    """Make the folder's parameters, metrics and dvc.lock a DVC experiment of HEAD; returns its commit.

    `dvc exp save` would ask for every output of the pipeline; the commit and its name are what it makes. The commit
    has HEAD's date: the same results are the same commit.
    """
    head = _git("rev-parse", "HEAD", folder=folder.worktree)
    date = _git("show", "--no-patch", "--format=%cI", head, folder=folder.worktree)
    roles = ("AUTHOR", "COMMITTER")
    values = {"NAME": "iterit", "EMAIL": "iterit@localhost", "DATE": date}
    identity = {f"GIT_{role}_{part}": value for role in roles for part, value in values.items()}
    _git("add", "--all", folder=folder.worktree)
    tree = _git("write-tree", folder=folder.worktree)
    commit = _git("commit-tree", tree, "-p", head, "-m", message, folder=folder.worktree, environment=identity)
    _git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit)
    return commit


def _git(*words: str, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """What git prints. Raises UserError with its own reason."""
    done = subprocess.run(
        ["git", *words], cwd=folder, env={**os.environ, **(environment or {})}, capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["no reason given"]
        raise UserError(f"git {words[0]}: {reason[0].removeprefix('fatal: ')}")
    return done.stdout.rstrip("\n")
