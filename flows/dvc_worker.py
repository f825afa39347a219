"""The DVC process of a flow run: it reads requests from standard input and answers between the lines that DVC prints.

One process serves the whole run, because importing DVC for each stage would cost more than many stages take.

    request (a JSON line)                           answer
    {"do": "status"}                                {"changed": [stages that are not up to date]}
    {"do": "environment", "NAME": "value"}          {}; sets environment variables of the stages
    {"do": "reproduce", "stage": "score@2"}         {"came": "cached", "restored" or "ran"}
        with "keep": "no", too                      the same; what the stage writes does not go into DVC's cache
    any, when DVC or the stage failed               {"error": reason, "exit_code": the stage's, or null}

Answers come on a pipe of their own, whose file descriptor is the only argument: nothing that data, file names or
settings make DVC or a stage print can be taken for an answer. Every request has a random `mark`, which is printed on
standard output before its answer: a reader that has met the mark has read everything printed for the request.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.core.errors import BAD_INPUT, TRY_LATER, UserError, without_password
from components.core.files import atomic_write
from components.core.params import parse_yaml
from components.core.paths import LOCK, SCRATCH, seconds_file
from components.core.process import die_with_parent, name_as_parent, relax_gc

MERGE = "<<<<<<<"  # how git marks what it could not merge


def main() -> None:
    """Answer requests until standard input ends."""
    die_with_parent()
    os.environ.update(name_as_parent())  # for the stages that DVC starts
    relax_gc()
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    # the flow's log needs one of DVC's own lines: that a stage begins to run
    logging.getLogger("dvc").setLevel(logging.WARNING)
    stage_logger = logging.getLogger("dvc.stage.run")
    stage_logger.setLevel(logging.INFO)
    stage_logger.addFilter(announce_stage)
    restore_broken_lock()
    try:
        repo = Repo(os.curdir)
    except (DvcException, SCMError) as failure:  # no git repository, or a configuration that DVC cannot read
        reason = without_password(str(failure))
        _serve(lambda _: {"error": reason, "exit_code": BAD_INPUT})
        return
    with repo:
        remove_broken_rwlock(repo)
        _serve(lambda request: answer(repo, request))


def restore_broken_lock() -> None:
    """Put the last committed dvc.lock in the place of one that a killed process has half written, and say so.

    DVC writes it in place and refuses what it cannot read; the end of a number that is cut off would even be believed.
    What was made since the commit is in DVC's run cache. A merge that is not resolved is left to the user.
    """
    text = LOCK.read_text(encoding="utf-8", errors="replace") if LOCK.is_file() else None
    if text is None or _is_whole(text) or MERGE in text:
        return
    kept = SCRATCH / f"{LOCK.name}.broken"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(text, encoding="utf-8")
    committed = subprocess.run(["git", "show", f"HEAD:./{LOCK}"], capture_output=True, text=True, check=False)
    if committed.returncode == 0:
        with atomic_write(LOCK) as temporary:
            temporary.write_text(committed.stdout, encoding="utf-8")
    else:
        LOCK.unlink()
    print(f"warning: {LOCK} was half written by a killed process; the last committed one is in its place ({kept})")


def _is_whole(text: str) -> bool:
    from dvc.dvcfile import Lockfile
    from dvc.utils.strictyaml import YAMLValidationError

    try:
        Lockfile.validate(parse_yaml(text, str(LOCK)), str(LOCK))
    except (UserError, YAMLValidationError):
        return False
    return text.endswith("\n")


def remove_broken_rwlock(repo: Any) -> None:
    """Remove DVC's list of the paths in use where a killed process has left half of it.

    DVC writes it in place, and refuses for good what it cannot read. Its own guard says that nobody is writing it.
    """
    from dvc.lock import LockError, make_lock
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    listed = Path(repo.tmp_dir) / RWLOCK_FILE
    hardlinks = repo.config["core"].get("hardlink_lock", False)
    try:
        with make_lock(str(listed.with_name(RWLOCK_LOCK)), tmp_dir=repo.tmp_dir, hardlink_lock=hardlinks):
            if listed.is_file() and not _is_json(listed):
                listed.unlink()
    except LockError:
        return  # another dvc is alive and at it


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except ValueError:
        return False
    return True


def _serve(answer_to: Callable[[dict[str, str]], dict[str, Any]]) -> None:
    with os.fdopen(int(sys.argv[1]), "w") as answers:
        for line in sys.stdin:
            request = json.loads(line)
            mark = request.pop("mark")
            given = answer_to(request)
            print(mark, flush=True)
            print(json.dumps(given), file=answers, flush=True)


def announce_stage(record: logging.LogRecord) -> bool:
    """A logging filter: prints `running` for DVC's line that a stage begins, and passes only warnings and errors."""
    if record.levelno > logging.INFO:
        return True
    if record.msg.startswith("Running stage"):
        print("running", flush=True)
    return False


def answer(repo: Any, request: dict[str, str]) -> dict[str, Any]:
    """The answer to a request; see the head of this file."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    do = request.pop("do")
    try:
        if do == "environment":
            os.environ.update(request)
            return {}
        if do == "status":
            return {"changed": sorted(repo.status())}
        return {"came": reproduce(repo, request["stage"], keep=request.get("keep") != "no")}
    except LockError:
        return {"error": "another dvc command is at work in this folder", "exit_code": TRY_LATER}
    except DvcException as error:
        cause = without_password(str(error.__cause__ or error))
        exit_code = re.search(r"exited with (-?\d+)$", cause)
        return {"error": cause, "exit_code": int(exit_code[1]) if exit_code else None}


def reproduce(repo: Any, stage: str, *, keep: bool = True) -> str:
    """Bring a stage up to date: it is `cached` (nothing has changed), `restored` (from the run cache), or it `ran`."""
    ended_before = _end_time(stage)
    if not repo.reproduce(stage, single_item=True, no_commit=not keep):
        return "cached"
    # a stage that has run has written its seconds file anew
    return "ran" if _end_time(stage) != ended_before else "restored"


def _end_time(stage: str) -> int | None:
    file = seconds_file(stage)
    return file.stat().st_mtime_ns if file.exists() else None


if __name__ == "__main__":
    main()
