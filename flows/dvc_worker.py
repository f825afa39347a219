"""One DVC process for a whole run. It is told on standard input what to do, and answers between what it prints.

A process of its own for every `dvc repro` would cost 1 s to 2 s a stage. Requests are JSON lines, {"do": "status"},
{"do": "environment", "NAME": "value"} or {"do": "reproduce", "stage": "score@2"}; an answer is a
JSON line after the record separator of RFC 7464, so that everything that DVC or the stage printed has been read when
the answer is.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Any

from components.core.errors import BAD_INPUT, TRY_LATER
from components.core.paths import seconds_file
from components.core.process import die_with_parent, name_as_parent, relax_gc

SEPARATOR = "\x1e"


def main() -> None:
    die_with_parent()
    os.environ.update(name_as_parent())  # for the stages that DVC starts
    relax_gc()
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    # of DVC's own lines the flow's log needs only that a stage begins, which it cannot know itself
    logging.getLogger("dvc").setLevel(logging.WARNING)
    begins = logging.getLogger("dvc.stage.run")
    begins.setLevel(logging.INFO)
    begins.addFilter(say_that_a_stage_begins)
    try:
        repo = Repo(os.curdir)
    except (DvcException, SCMError) as error:  # no git repository, or a configuration that DVC cannot read
        print(SEPARATOR + json.dumps({"error": str(error), "exit_code": BAD_INPUT}), flush=True)
        return
    with repo:
        for line in sys.stdin:
            print(SEPARATOR + json.dumps(answer(repo, json.loads(line))), flush=True)


def answer(repo: Any, request: dict[str, str]) -> dict[str, Any]:
    """What came of a request; {"error": ..., "exit_code": ...} where DVC or the stage failed."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    do = request.pop("do")
    try:
        if do == "environment":
            os.environ.update(request)
            return {}
        if do == "status":
            return {"changed": sorted(repo.status())}
        return {"came": reproduce(repo, request["stage"])}
    except LockError:
        return {"error": "another dvc command is at work in this folder", "exit_code": TRY_LATER}
    except DvcException as error:
        cause = error.__cause__ or error
        exit_code = re.search(r"exited with (-?\d+)$", str(cause))
        return {"error": str(cause), "exit_code": int(exit_code[1]) if exit_code else None}


def say_that_a_stage_begins(record: logging.LogRecord) -> bool:
    if record.levelno > logging.INFO:
        return True
    if record.msg.startswith("Running stage"):
        print("running", flush=True)
    return False


def reproduce(repo: Any, stage: str) -> str:
    """`cached`: nothing that it depends on has changed; `restored`: from DVC's run cache; or `ran`."""
    before = _ended(stage)
    if not repo.reproduce(stage, single_item=True):
        return "cached"
    # a stage that really ran has written how long it took
    return "ran" if _ended(stage) != before else "restored"


def _ended(stage: str) -> int | None:
    file = seconds_file(stage)
    return file.stat().st_mtime_ns if file.exists() else None


if __name__ == "__main__":
    main()
