"""The end of a run commits the files that the run wrote, and none of the user's changes."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from components.core.files import write_json
from components.core.settings.seal import SealSettings
from components.promotion.gate import Decision
from components.promotion.registered import Registered, read_registered, write_registered
from components.provenance.statements import BUNDLE
from flows.seal import commit_results, seal, tag_version

AUTHOR = "iterit <iterit@localhost>"
REGISTERED = Registered(
    model="my model",
    checkpoint="c" * 64,
    version="3",
    alias="latest_iterit",
    new=True,
    gate=Decision(True, "there was no champion", {"loss": 2.0}, None, None, False),
    run_id="r" * 32,
    url="http://127.0.0.1:5000",
)


def git(*arguments: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet", "--initial-branch", "main")
    for name in ("dvc.lock", "params.yaml", "code.py", "staged.py"):
        Path(name).write_text("first\n")
    write_json(Path("metrics/register.json"), {"checkpoint": "c" * 64})
    Path(".gitignore").write_text("/.iterit/\n")
    Path(".iterit").mkdir()
    git("add", "--all")
    git("commit", "--quiet", "--message", "first")
    return tmp_path


def test_only_the_results_are_committed_and_what_is_staged_stays_staged() -> None:
    Path("dvc.lock").write_text("second\n")
    Path(BUNDLE).write_text("{}\n")
    Path("code.py").write_text("changed\n")
    Path("staged.py").write_text("changed\n")
    git("add", "staged.py")
    commit = commit_results("Retrain: my model version 3", AUTHOR)
    assert commit == git("rev-parse", "HEAD")
    assert git("log", "-1", "--format=%an <%ae> %s") == f"{AUTHOR} Retrain: my model version 3"
    assert git("show", "--format=", "--name-only", "HEAD").split() == ["dvc.lock", BUNDLE]
    assert git("status", "--porcelain").splitlines() == ["M code.py", "M  staged.py"]
    assert git("symbolic-ref", "HEAD") == "refs/heads/main"


def test_unchanged_results_make_no_commit() -> None:
    before = git("rev-parse", "HEAD")
    assert commit_results("Retrain", AUTHOR) is None
    assert git("rev-parse", "HEAD") == before


def test_the_tag_names_the_checkpoint_and_the_runs() -> None:
    assert tag_version(REGISTERED, "f" * 36, AUTHOR) == "iterit/my-model/v3"
    message = json.loads(git("tag", "--list", "--format=%(contents)", "iterit/my-model/v3"))
    assert message["checkpoint"] == "c" * 64
    assert message["mlflow_run"] == "r" * 32
    assert message["prefect_flow_run"] == "f" * 36
    assert len(message["dvc_lock"]) == 64


def test_sealing_commits_and_tags_the_registered_version(caplog: pytest.LogCaptureFixture) -> None:
    write_registered(REGISTERED)
    assert read_registered(REGISTERED.checkpoint) == REGISTERED
    assert read_registered("d" * 64) is None
    Path("dvc.lock").write_text("second\n")
    with caplog.at_level(logging.INFO):
        seal(SealSettings(push=False), None, logging.getLogger("test"))
    assert caplog.messages == [f"sealed: commit {git('rev-parse', 'HEAD')[:12]}", "sealed: tag iterit/my-model/v3"]
    assert git("log", "-1", "--format=%an <%ae> %s") == f"{AUTHOR} Retrain: my model version 3"
    assert git("rev-parse", "iterit/my-model/v3^{commit}") == git("rev-parse", "HEAD")


def test_a_run_that_was_killed_before_its_seal_is_sealed_by_the_next_and_only_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_registered(REGISTERED)
    Path("dvc.lock").write_text("second\n")
    commit_results("Retrain", AUTHOR)  # and killed before the tag
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            seal(SealSettings(push=False), None, logging.getLogger("test"))
    assert caplog.messages == [f"sealed: commit {git('rev-parse', 'HEAD')[:12]}", "sealed: tag iterit/my-model/v3"]


def test_a_kill_right_after_the_commit_leaves_nothing_staged() -> None:
    Path("dvc.lock").write_text("second\n")
    Path(BUNDLE).write_text("{}\n")
    hook = Path(".git/hooks/reference-transaction")
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\n[ "$1" != committed ] || kill -9 "$(cut -d" " -f4 "/proc/$PPID/stat")"\n')
    hook.chmod(0o755)
    committing = multiprocessing.Process(target=commit_results, args=("Retrain", AUTHOR))
    committing.start()
    committing.join()
    assert committing.exitcode == -signal.SIGKILL
    assert git("show", "--format=", "--name-only", "HEAD").split() == ["dvc.lock", BUNDLE]
    assert git("status", "--porcelain") == ""


def test_a_tag_never_moves_and_another_store_s_version_gets_a_name_of_its_own() -> None:
    tag_version(REGISTERED, None, AUTHOR)
    tagged = git("rev-parse", "iterit/my-model/v3")
    Path("dvc.lock").write_text("second\n")
    commit_results("Retrain", AUTHOR)
    assert tag_version(REGISTERED, None, AUTHOR) is None
    other = replace(REGISTERED, checkpoint="d" * 64)
    assert tag_version(other, None, AUTHOR) == "iterit/my-model/v3-dddddddd"
    assert tag_version(other, None, AUTHOR) is None
    assert git("rev-parse", "iterit/my-model/v3") == tagged


def test_a_user_s_wish_to_sign_tags_and_commits_does_not_stop_the_seal(caplog: pytest.LogCaptureFixture) -> None:
    for key in ("tag.gpgSign", "commit.gpgSign"):
        git("config", key, "true")
    git("config", "gpg.program", "/bin/false")
    write_registered(REGISTERED)
    Path("dvc.lock").write_text("second\n")
    seal(SealSettings(push=False), None, logging.getLogger("test"))
    assert caplog.messages == []
    assert git("tag", "--list") == "iterit/my-model/v3"


def test_an_edit_of_params_yaml_alone_is_the_user_s_to_commit() -> None:
    Path("params.yaml").write_text("mine\n")
    assert commit_results("Retrain", AUTHOR) is None


def test_a_checkpoint_that_is_not_registered_here_is_not_sealed(caplog: pytest.LogCaptureFixture) -> None:
    write_registered(replace(REGISTERED, checkpoint="d" * 64))
    Path("dvc.lock").write_text("second\n")
    before = git("rev-parse", "HEAD")
    with caplog.at_level(logging.INFO):
        seal(SealSettings(push=False), None, logging.getLogger("test"))
    assert "`iterit register` makes one" in caplog.messages[0]
    assert git("rev-parse", "HEAD") == before


def test_what_cannot_be_committed_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    write_registered(REGISTERED)
    Path(".git/HEAD").write_text("ref: refs/heads/none\n")
    seal(SealSettings(push=False), None, logging.getLogger("test"))
    (message,) = caplog.messages
    assert message.startswith("the run was not committed: ")
    assert message.endswith(f"; `git add dvc.lock params.yaml metrics plots {BUNDLE}` and commit them")
