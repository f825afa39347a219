"""The end of a successful run: its small files become a git commit and a tag, its data go to DVC's remote.

Only what a run writes is committed, never what somebody has changed or staged besides: the commit is made with an
index of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from components.core.paths import SCRATCH
from components.core.settings.seal import SealSettings
from components.promotion.registered import Registered, read_registered
from components.provenance.digests import file_digest
from components.provenance.statements import BUNDLE, write_bundle

RESULTS = ("dvc.lock", "params.yaml", "metrics", "plots", BUNDLE)
INDEX = SCRATCH / "seal.index"
ROLES = ("AUTHOR", "COMMITTER")


def seal(settings: SealSettings, flow_run: str | None, logger: Any) -> None:
    """Commit, tag and push as `settings` say; what cannot be done is one warning, and no failure of the run."""
    try:
        if settings.commit:
            registered = read_registered()
            assert registered, "the stage `register` has just written it"
            write_bundle()
            title = f"Retrain: {registered.model} version {registered.version}"
            commit = commit_results(title, settings.author)
            logger.info("sealed: %s", f"commit {commit[:12]}" if commit else "nothing to commit")
            if settings.tag and commit:
                tag = tag_version(registered, flow_run, settings.author)
                logger.info("sealed: tag %s", tag)
        if settings.push and _remote():
            done = subprocess.run([sys.executable, "-m", "dvc", "push", "--quiet"], capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["dvc push failed"])[-1]
                logger.warning("the data were not pushed: %s; `dvc push` does it later", last)
            else:
                logger.info("sealed: data pushed")
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [str(error)])[-1]
        logger.warning("the run was not committed: %s; `git add %s` and commit them", last, " ".join(RESULTS))


def commit_results(title: str, author: str) -> str | None:
    """Commit the result files on the present branch and return the commit; None when they are as committed."""
    INDEX.unlink(missing_ok=True)
    own = {"GIT_INDEX_FILE": str(INDEX.absolute())}
    before = _git("rev-parse", "HEAD")
    present = [name for name in RESULTS if Path(name).exists()]
    _git("read-tree", before, env=own)
    _git("add", "--all", "--", *present, env=own)
    tree = _git("write-tree", env=own)
    INDEX.unlink()
    if tree == _git("rev-parse", f"{before}^{{tree}}"):
        return None
    commit = _git("commit-tree", tree, "-p", before, "-m", title, env=_identity(author))
    _git("update-ref", "-m", title, "HEAD", commit, before)  # fails when somebody has committed meanwhile
    _git("reset", "--quiet", "--", *present)  # the user's index knows these files as committed; others stay as they are
    return commit


def tag_version(registered: Registered, flow_run: str | None, author: str) -> str:
    """An annotated tag for the registered version; its message tells what git does not know."""
    name = f"iterit/{re.sub(r'[^A-Za-z0-9_.-]', '-', registered.model)}/v{registered.version}"
    message = {
        "checkpoint": registered.checkpoint,
        "dvc_lock": file_digest(Path("dvc.lock")),
        "mlflow_run": registered.run_id,
        "prefect_flow_run": flow_run,
    }
    _git("tag", "--force", "--annotate", "--message", json.dumps(message, indent=2), name, env=_identity(author))
    return name


def _remote() -> str:
    """DVC's default remote, of the repository or of this machine; empty when there is none."""
    done = subprocess.run([sys.executable, "-m", "dvc", "config", "core.remote"], capture_output=True, text=True)
    return done.stdout.strip()


def _identity(author: str) -> dict[str, str]:
    name, _, address = author.rstrip(">").partition(" <")
    return {f"GIT_{role}_{what}": value for role in ROLES for what, value in (("NAME", name), ("EMAIL", address))}


def _git(*arguments: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, env={**os.environ, **(env or {})}
    )
    return done.stdout.strip()
