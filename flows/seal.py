"""The end of a successful run: its small files become a git commit and a tag, its data are pushed to DVC's remote.

Only what a run writes is committed, with an index of its own: other changes of the user, staged or not, stay as they
are.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.paths import LOCK, PARAMS, SCRATCH
from components.core.settings.seal import SealSettings
from components.promotion.registered import Registered, read_registered
from components.provenance.digests import file_digest
from components.provenance.statements import BUNDLE, write_bundle

if TYPE_CHECKING:
    from flows.recording import Logger

RESULTS = (str(LOCK), str(PARAMS), "metrics", "plots", BUNDLE)
INDEX = SCRATCH / "seal.index"
ROLES = ("AUTHOR", "COMMITTER")


def seal(settings: SealSettings, flow_run: str | None, logger: Logger) -> None:
    """Commit, tag and push as `settings` say; what cannot be done is a warning, and no failure of the run."""
    try:
        if settings.commit:
            _commit_and_tag(settings, flow_run, logger)
        if settings.push and _default_remote():
            _push(logger)
    except subprocess.CalledProcessError as error:
        reason = _last_line(error.stderr, str(error))
        logger.warning("the run was not committed: %s; `git add %s` and commit them", reason, " ".join(RESULTS))


def _commit_and_tag(settings: SealSettings, flow_run: str | None, logger: Logger) -> None:
    registered = read_registered()
    assert registered, "the stage `register` has just written it"
    write_bundle()
    commit = commit_results(f"Retrain: {registered.model} version {registered.version}", settings.author)
    logger.info("sealed: %s", f"commit {commit[:12]}" if commit else "nothing to commit")
    if settings.tag and commit:
        logger.info("sealed: tag %s", tag_version(registered, flow_run, settings.author))


def commit_results(title: str, author: str) -> str | None:
    """Commit the result files on the current branch; returns the commit, None when nothing has changed."""
    INDEX.unlink(missing_ok=True)
    own_index = {"GIT_INDEX_FILE": str(INDEX.absolute())}
    head = _git("rev-parse", "HEAD")
    present = [name for name in RESULTS if Path(name).exists()]
    _git("read-tree", head, env=own_index)
    _git("add", "--all", "--", *present, env=own_index)
    tree = _git("write-tree", env=own_index)
    INDEX.unlink()
    if tree == _git("rev-parse", f"{head}^{{tree}}"):
        return None
    commit = _git("commit-tree", tree, "-p", head, "-m", title, env=_identity(author))
    _git("update-ref", "-m", title, "HEAD", commit, head)  # fails when the branch has moved meanwhile
    _git("reset", "--quiet", "--", *present)  # in the user's index these files are as committed; others stay staged
    return commit


def tag_version(registered: Registered, flow_run: str | None, author: str) -> str:
    """Tag the commit with the registered version; the message names its checkpoint, its dvc.lock and its runs."""
    name = f"iterit/{re.sub(r'[^A-Za-z0-9_.-]', '-', registered.model)}/v{registered.version}"
    message = {
        "checkpoint": registered.checkpoint,
        "dvc_lock": file_digest(LOCK),
        "mlflow_run": registered.run_id,
        "prefect_flow_run": flow_run,
    }
    _git("tag", "--force", "--annotate", "--message", json.dumps(message, indent=2), name, env=_identity(author))
    return name


def _default_remote() -> str:
    """The name of DVC's default remote, of the repository or of this machine; empty when there is none."""
    dvc = subprocess.run([sys.executable, "-m", "dvc", "config", "core.remote"], capture_output=True, text=True)
    return dvc.stdout.strip()


def _push(logger: Logger) -> None:
    dvc = subprocess.run([sys.executable, "-m", "dvc", "push", "--quiet"], capture_output=True, text=True)
    if dvc.returncode:
        reason = _last_line(dvc.stderr, "dvc push failed")
        logger.warning("the data were not pushed: %s; `dvc push` does it later", reason)
    else:
        logger.info("sealed: data pushed")


def _last_line(text: str, default: str) -> str:
    return (text.strip().splitlines() or [default])[-1]


def _identity(author: str) -> dict[str, str]:
    """Git's environment variables for an author given as `name <address>`."""
    name, _, address = author.rstrip(">").partition(" <")
    return {f"GIT_{role}_{field}": value for role in ROLES for field, value in (("NAME", name), ("EMAIL", address))}


def _git(*arguments: str, env: dict[str, str] | None = None) -> str:
    git = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, env={**os.environ, **(env or {})}
    )
    return git.stdout.strip()
