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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.errors import without_password
from components.core.files import read_json
from components.core.paths import LOCK, PARAMS, SCRATCH
from components.core.settings.seal import SealSettings
from components.promotion.registered import Registered, read_registered
from components.provenance.digests import file_digest
from components.provenance.statements import BUNDLE, write_bundle

if TYPE_CHECKING:
    from flows.recording import Logger

RESULT = Path("metrics/register.json")
RESULTS = (str(LOCK), str(PARAMS), "metrics", "plots", BUNDLE)
INDEX = SCRATCH / "seal.index"
ROLES = ("AUTHOR", "COMMITTER")


def seal(settings: SealSettings, flow_run: str | None, logger: Logger) -> None:
    """Commit, tag and push as `settings` say, whatever of it is not done yet: a killed run is sealed by the next one.

    What cannot be done is a warning, and no failure of the run.
    """
    registered = read_registered(read_json(RESULT)["checkpoint"])
    if settings.commit and registered is None:
        logger.info("not sealed: no version is registered for this checkpoint here; `iterit register` makes one")
    elif settings.commit and registered:
        remedy = f"`git add {' '.join(RESULTS)}` and commit them"
        with _warning(logger, f"the run was not committed: %s; {remedy}"):
            write_bundle()
            title = f"Retrain: {registered.model} version {registered.version}"
            if commit := commit_results(title, settings.author):
                logger.info("sealed: commit %s", commit[:12])
            if settings.tag:
                with _warning(logger, "the run's commit was not tagged: %s"):
                    if tag := tag_version(registered, flow_run, settings.author):
                        logger.info("sealed: tag %s", tag)
    if settings.push and _default_remote():
        _push(logger)


@contextmanager
def _warning(logger: Logger, message: str) -> Iterator[None]:
    """Turn a failed git command of the block into a warning with git's own reason."""
    try:
        yield
    except subprocess.CalledProcessError as error:
        logger.warning(message, _last_line(error.stderr, str(error)))


def commit_results(title: str, author: str) -> str | None:
    """Commit the result files on the current branch; returns the commit, None when git has the results already."""
    INDEX.unlink(missing_ok=True)
    own_index = {"GIT_INDEX_FILE": str(INDEX.absolute())}
    head = _git("rev-parse", "HEAD")
    present = [name for name in RESULTS if Path(name).exists()]
    _git("read-tree", head, env=own_index)
    _git("add", "--all", "--", *present, env=own_index)
    tree = _git("write-tree", env=own_index)
    INDEX.unlink()
    changed = _git("diff-tree", "-r", "--name-only", "--relative", head, tree).splitlines()
    if set(changed) <= {str(PARAMS)}:  # the user's edit, of which no result was made
        return None
    commit = _git("commit-tree", tree, "-p", head, "-m", title, env=_identity(author))
    # in the user's index, too, so that they are not staged as deleted; before the commit, because a kill comes between
    _git("add", "--all", "--", *present)
    _git("update-ref", "-m", title, "HEAD", commit, head)  # fails when the branch has moved meanwhile
    return commit


def tag_version(registered: Registered, flow_run: str | None, author: str) -> str | None:
    """Tag the last commit with the registered version; returns the tag, None when the checkpoint has one.

    The message names its checkpoint, its dvc.lock and its runs. A tag never moves: where another MLflow store has
    given the number to another checkpoint, the digest of this one is part of the name.
    """
    for tag in _tag_names(registered):
        existing = _git("tag", "--list", "--format=%(contents)", tag)
        if not existing:
            message = {
                "checkpoint": registered.checkpoint,
                "dvc_lock": file_digest(LOCK),
                "mlflow_run": registered.run_id,
                "prefect_flow_run": flow_run,
            }
            text = json.dumps(message, indent=2)
            _git("tag", "--annotate", "--no-sign", "--message", text, tag, env=_identity(author))
            return tag
        if registered.checkpoint in existing:
            return None
    return None


def sealed_tag(registered: Registered) -> str | None:
    """The tag that names the registered version's checkpoint; None where no sealed run has it, or outside git."""
    with suppress(subprocess.CalledProcessError, FileNotFoundError):
        for tag in _tag_names(registered):
            if registered.checkpoint in _git("tag", "--list", "--format=%(contents)", tag):
                return tag
    return None


def _tag_names(registered: Registered) -> tuple[str, str]:
    """The tag of a version, and the one it gets where that is another checkpoint's."""
    name = f"iterit/{re.sub(r'[^A-Za-z0-9_.-]', '-', registered.model)}/v{registered.version}"
    return name, f"{name}-{registered.checkpoint[:8]}"


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
    return without_password((text.strip().splitlines() or [default])[-1])


def _identity(author: str) -> dict[str, str]:
    """Git's environment variables for an author given as `name <address>`."""
    name, _, address = author.rstrip(">").partition(" <")
    return {f"GIT_{role}_{field}": value for role in ROLES for field, value in (("NAME", name), ("EMAIL", address))}


def _git(*arguments: str, env: dict[str, str] | None = None) -> str:
    git = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, env={**os.environ, **(env or {})}
    )
    return git.stdout.strip()
