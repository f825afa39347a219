"""`iterit audit verify` finds every edit of what was recorded, and passes what real use leaves behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from components.audit import seal_check
from components.core.errors import UserError
from components.core.files import write_json
from components.promotion.gate import Decision
from components.promotion.registered import Registered
from components.provenance.digests import folder_digest
from components.provenance.statements import write_bundle
from flows.cli_audit import app
from flows.seal import commit_results, tag_version
from tests.support.finished_pipeline import commit, dvc
from tests.support.project import FinishedRun, call, edit_params

AUTHOR = "iterit <iterit@localhost>"
WHO = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
Edit = Callable[[], object]


def git(*arguments: str, cwd: Path | None = None) -> str:
    return subprocess.run(["git", *WHO, *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def verify(*arguments: str) -> tuple[int, list[str]]:
    """Exit code and lines of `iterit audit verify` in the current folder, without the lines of what holds."""
    result = CliRunner().invoke(app, ["verify", *arguments])
    if isinstance(result.exception, UserError):
        return result.exception.exit_code, [f"error: {mistake}" for mistake in result.exception.mistakes]
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, [line for line in result.output.splitlines() if not line.startswith("ok ")]


def mismatch(*arguments: str) -> tuple[str, str, str]:
    """Thing, recorded and found value of the only line about what does not hold; the exit code must be 1."""
    code, lines = verify(*arguments)
    assert (code, len(lines)) == (1, 1), lines
    assert lines[0].startswith("MISMATCH  ")
    thing, _, values = lines[0].removeprefix("MISMATCH  ").partition("  recorded ")
    recorded, _, found = values.partition(", found ")
    assert recorded != found
    return thing, recorded, found


def seal(version: str = "1") -> str:
    """Commit the results and tag them, as the end of `iterit run` does."""
    write_bundle()
    commit_results(f"Retrain: iterit version {version}", AUTHOR)
    gate = Decision(True, "there was no champion", {}, None, None, False)
    digest = folder_digest(Path("models/2"))
    tag = tag_version(Registered("iterit", digest, version, "latest", True, gate, "run", ""), None, AUTHOR)
    assert tag
    return tag


def finish_register(folder: Path) -> None:
    """Write what `register` writes, its statement and its entry in dvc.lock."""
    write_json(folder / "metrics/register.json", {"iteration": "2", "checkpoint": folder_digest(folder / "models/2")})
    subprocess.run([sys.executable, "-m", "components.provenance.statements", "register"], cwd=folder, check=True)
    dvc(folder, "commit", "--quiet", "--force", "register")


@pytest.fixture(scope="module")
def sealed_pipeline(finished_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished pipeline in git, registered and sealed."""
    folder, before = tmp_path_factory.mktemp("sealed") / "project", Path.cwd()
    shutil.copytree(finished_pipeline, folder)
    os.chdir(folder)
    try:
        git("add", "--all")
        git("commit", "--quiet", "--message", "start")
        commit(folder)  # the statements name the commit
        finish_register(folder)
        seal()
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def sealed(sealed_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sealed pipeline, as the current folder."""
    folder = tmp_path / "sealed"
    shutil.copytree(sealed_pipeline, folder)
    monkeypatch.chdir(folder)
    return folder


def replace(path: str, old: str, new: str) -> Edit:
    def edit() -> None:
        text = Path(path).read_text(encoding="utf-8")
        assert old in text
        rewrite(path, text.replace(old, new, 1))

    return edit


def rewrite(path: str, text: str) -> None:
    Path(path).unlink()  # it may be a link into DVC's cache
    Path(path).write_text(text, encoding="utf-8")


def append(path: str, text: str = "\n") -> Edit:
    return lambda: rewrite(path, Path(path).read_text(encoding="utf-8") + text)


def remove(path: str) -> Edit:
    return lambda: Path(path).unlink()


def add(path: str) -> Edit:
    def edit() -> None:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("added", encoding="utf-8")

    return edit


def edit_lock(stage: str, change: Callable[[Any], object]) -> Edit:
    def edit() -> None:
        yaml = YAML()
        lock = yaml.load(Path("dvc.lock"))
        change(lock["stages"][stage] if stage else lock["stages"])
        yaml.dump(lock, Path("dvc.lock"))

    return edit


def in_lock(stage: str, path: str, **values: Any) -> Edit:
    """Change fields of a dependency or an output in dvc.lock."""

    def change(entry: Any) -> None:
        (item,) = (item for item in (*entry["deps"], *entry["outs"]) if item["path"] == path)
        item.update(values)

    return edit_lock(stage, change)


def param_in_lock(stage: str, *keys: str, value: Any) -> Edit:
    def change(entry: Any) -> None:
        block = entry["params"]["params.yaml"]
        for key in keys[:-1]:
            block = block[key]
        block[keys[-1]] = value

    return edit_lock(stage, change)


def command_in_lock(stage: str, old: str, new: str) -> Edit:
    def change(entry: Any) -> None:
        assert old in entry["cmd"]
        entry["cmd"] = entry["cmd"].replace(old, new)

    return edit_lock(stage, change)


MD5 = "0" * 32
EDITS: list[tuple[str, Edit]] = [
    # a statement removed
    *((f"provenance/{stage}.json", remove(f"provenance/{stage}.json")) for stage in (
        "manifest@incoming", "base_model", "evaluate_base", "score@1", "finetune@2", "report", "register"
    )),
    # a stage taken out of dvc.lock, with its statement or without
    ("dvc.lock: evaluate@2", edit_lock("", lambda stages: stages.pop("evaluate@2"))),
    ("provenance/select@1.json", lambda: (edit_lock("", lambda stages: stages.pop("select@1"))(),
                                          remove("provenance/select@1.json")())),
    ("dvc.lock: register as sealed in ", lambda: (
        edit_lock("", lambda stages: stages.pop("register"))(),
        remove("provenance/register.json")(),
        remove("metrics/register.json")(),
    )),
    # dvc.lock: md5, size, number of files, of outputs and dependencies of every kind
    ("dvc.lock: ingest: data/raw.parquet md5", in_lock("ingest", "data/raw.parquet", md5=MD5)),
    ("dvc.lock: finetune@1: models/1 md5", in_lock("finetune@1", "models/1", md5=f"{MD5}.dir")),
    ("dvc.lock: finetune@1: models/1 nfiles", in_lock("finetune@1", "models/1", nfiles=99)),
    ("dvc.lock: finetune@2: state/2 size", in_lock("finetune@2", "state/2", size=1)),
    ("dvc.lock: report: plots/steps.csv md5", in_lock("report", "plots/steps.csv", md5=MD5)),
    ("dvc.lock: report: provenance/report.json size",
     in_lock("report", "provenance/report.json", size=1)),
    ("provenance/register.json", in_lock("register", "provenance/register.json", md5=MD5)),
    ("dvc.lock: register: models md5", in_lock("register", "models", md5=f"{MD5}.dir")),
    ("dvc.lock: score@2: models/1 md5", in_lock("score@2", "models/1", md5=f"{MD5}.dir")),
    ("dvc.lock: select@1: components/strategies md5",
     in_lock("select@1", "components/strategies", md5=f"{MD5}.dir")),
    ("dvc.lock: manifest@incoming: data/incoming md5",
     in_lock("manifest@incoming", "data/incoming", md5=f"{MD5}.dir")),
    ("dvc.lock: evaluate_base: outs samples/base.json",
     edit_lock("evaluate_base", lambda entry: entry["outs"].pop(-1))),
    ("dvc.lock: dedupe: deps data/target.parquet", edit_lock("dedupe", lambda entry: entry["deps"].pop(-1))),
    # dvc.lock: parameters and commands
    ("dvc.lock: select@2: params select.ratio", param_in_lock("select@2", "select", "ratio", value=0.3)),
    ("dvc.lock: score@1: params score.model", param_in_lock("score@1", "score", "model", value="base")),
    ("dvc.lock: register: params gate.margin", param_in_lock("register", "gate", "margin", value=1.0)),
    ("dvc.lock: report: params iterations.2.parent",
     edit_lock("report", lambda entry: entry["params"]["params.yaml"]["iterations"].pop("2"))),
    ("dvc.lock: finetune@2: cmd", command_in_lock("finetune@2", "--model models/2", "--model models/3")),
    ("dvc.yaml: select@1: cmd", command_in_lock("select@1", "exit 2", "exit 0")),
    # params.yaml: values that a stage depends on
    ("params.yaml: select.ratio as select@1 read it", replace("params.yaml", "ratio: 0.2", "ratio: 0.25")),
    ("params.yaml: register.name as register read it", replace("params.yaml", "name: iterit", "name: other")),
    ("params.yaml: ingest.max_characters as ", replace("params.yaml", "max_characters: 20000", "max_characters: 9")),
    ("params.yaml: evaluate.samples as ", replace("params.yaml", "  samples: 2\n", "")),
    # dvc.yaml
    ("dvc.yaml: report: cmd", replace("dvc.yaml", "--steps plots/steps.csv", "--steps plots/other.csv")),
    ("dvc.yaml: ingest: deps components/data", replace("dvc.yaml", "      - components/data\n", "")),
    ("dvc.yaml: base_model: outs models/proxy", replace("dvc.yaml", "[models/base, models/proxy,", "[models/base,")),
    ("dvc.yaml: base_model: params proxy_model",
     replace("dvc.yaml", "params: [base_model, proxy_model]", "params: [base_model]")),
    ("dvc.yaml as git has it", append("dvc.yaml", "# a comment\n")),
    # the bundle
    ("provenance.intoto.jsonl", replace("provenance.intoto.jsonl", '"sha256": "', '"sha256": "0')),
    ("provenance.intoto.jsonl", append("provenance.intoto.jsonl", "{}\n")),
    ("provenance.intoto.jsonl", remove("provenance.intoto.jsonl")),
    # code
    ("components/select.py as select@1 read it", append("components/select.py")),
    ("components/data as ", add("components/data/extra.py")),
    ("conf/deepspeed as finetune@1 read it", append("conf/deepspeed/zero2.json")),
    # outputs, of the stages at the edges too
    *((path, append(path)) for path in (
        "plots/iterations.csv", "plots/complexity.csv", "samples/base.json", "samples/2.json",
        "metrics/evaluate/base.json", "metrics/ingest.json", "metrics/register.json", "data/sources/incoming.json",
        "data/iterations/1/complexity.csv", "data/iterations/2/steps.csv",
    )),
    ("state/1", append("state/1/progress.json")),
    ("data/sources as ingest read it", add("data/sources/other.json")),
    # what was added to a folder
    ("models/1", add("models/1/extra.bin")),
    ("models/2", add("models/2/__pycache__/module.cpython-311.pyc")),
    ("models/base", add("models/base/module.pyc")),
    ("models/2/linked", lambda: Path("models/2/linked").symlink_to("../1")),
    ("models/2/pipe", lambda: os.mkfifo("models/2/pipe")),
]  # fmt: skip


@pytest.mark.parametrize(("thing", "edit"), EDITS, ids=[f"{place}: {thing}" for place, (thing, _) in enumerate(EDITS)])
def test_an_edit_is_named_with_both_values(sealed: Path, thing: str, edit: Edit) -> None:
    edit()
    named, _, _ = mismatch()
    assert named == thing or (thing.endswith(" ") and named.startswith(thing))


def test_a_sealed_checkpoint_says_which_commit_it_was_compared_with(sealed: Path) -> None:
    code, lines = verify()
    assert (code, len(lines)) == (0, 2)
    assert f"checks hold: iteration 2, {folder_digest(Path('models/2'))}" in lines[0]
    commit_ = git("rev-parse", "HEAD")[:12]
    assert lines[1] == f"compared with the sealed commit {commit_} (tag iterit/iterit/v1); there is no signature"
    assert verify("models/1")[0] == 0
    assert verify("models/base")[0] == 0


def forge_subset() -> str:
    Path("data/iterations/2/subset.parquet").write_bytes(Path("data/pool.parquet").read_bytes())
    return "data/iterations/2/subset.parquet"


def forge_checkpoint() -> str:
    append("models/2/config.json")()
    return "models/2"


def forge_metrics() -> str:
    replace("metrics/evaluate/2.json", '"loss": ', '"loss": 1')()
    return "metrics/evaluate/2.json"


def forge_sources() -> str:
    append("data/sources/incoming.json")()
    return "data/sources/incoming.json"


@pytest.mark.parametrize("forge", [forge_subset, forge_checkpoint, forge_metrics, forge_sources])
@pytest.mark.parametrize("committed", [False, True])
def test_data_statements_and_lock_forged_together_differ_from_the_sealed_commit(
    sealed: Path, forge: Callable[[], str], committed: bool
) -> None:
    name = git("rev-parse", "HEAD")[:12]
    path = forge()
    commit(sealed)
    finish_register(sealed)
    write_bundle()
    if committed:
        git("add", "--all")
        git("commit", "--quiet", "--message", "forged")
    thing, _, _ = mismatch()
    assert thing == f"{path} as sealed in {name} (tag iterit/iterit/v1), from the same inputs"


def test_a_forged_md5_of_a_source_that_is_gone_differs_from_the_sealed_commit(sealed: Path) -> None:
    add("data/incoming/new.json")()  # the user's next data: a line, and no mismatch
    code, lines = verify()
    assert code == 0
    assert lines[0].startswith("changed   data/incoming as manifest@incoming read it  recorded ")
    in_lock("manifest@incoming", "data/incoming", md5=f"{MD5}.dir")()
    code, lines = verify()
    assert code == 1
    assert lines[-1].startswith("MISMATCH  dvc.lock: manifest@incoming as sealed in ")


def test_without_a_seal_verify_says_that_it_compared_with_the_workspace_alone(project: Path) -> None:
    forge_subset()
    commit(project)
    code, lines = verify()
    assert code == 0
    assert lines[-1] == "compared with the workspace alone; git has no sealed run; there is no signature"


def test_a_tag_that_was_moved_to_another_commit_is_found(sealed: Path) -> None:
    message = git("tag", "--list", "--format=%(contents)", "iterit/iterit/v1")
    append("dvc.lock", "# forged\n")()
    git("commit", "--quiet", "--all", "--message", "forged")
    git("tag", "--force", "--annotate", "--message", message, "iterit/iterit/v1")
    git("commit", "--quiet", "--allow-empty", "--message", "later")
    assert mismatch()[0] == "dvc.lock of tag iterit/iterit/v1"


@pytest.mark.parametrize(
    "content", [b"{", b"\0", b"\xff\xfe\xff", b"- a\n", b"stages: 1", b"stages: {a: 1}", b"stages: " + b"[" * 3000]
)
def test_a_lock_that_is_no_yaml_or_no_lock_is_one_line(sealed: Path, content: bytes) -> None:
    Path("dvc.lock").unlink()
    Path("dvc.lock").write_bytes(content)
    code, lines = verify()
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("error: dvc.lock")


def test_a_new_seal_of_the_same_checkpoint_is_the_one_that_counts(sealed: Path) -> None:
    edit_params(sealed, {"evaluate": {"samples": 1}})
    append("samples/2.json")()
    commit(sealed)
    finish_register(sealed)
    code, lines = verify()
    assert code == 0
    assert "evaluate@2 since it was sealed in " in "".join(lines)
    assert lines[-1].endswith("ran since: evaluate_base, evaluate@1, evaluate@2; there is no signature")
    write_bundle()
    newest = commit_results("Retrain: iterit version 1", AUTHOR)
    assert newest
    assert verify()[1][1:] == [f"compared with the sealed commit {newest[:12]}; there is no signature"]


def test_the_titles_of_seals_are_those_that_a_run_gives(finished_run: FinishedRun) -> None:
    assert git("log", "-1", "--format=%s", cwd=finished_run.folder).startswith(seal_check.SUBJECT)


def test_what_real_use_leaves_behind_passes(after_a_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(after_a_run)
    first, ran = folder_digest(Path("models/2")), git("rev-parse", "HEAD")[:12]
    seal_line = f"compared with the sealed commit {ran} (tag iterit/iterit/v1)"

    def passes(*arguments: str) -> str:
        code, lines = verify(*arguments)
        assert code == 0, lines
        return lines[-1]

    assert passes() == f"{seal_line}; there is no signature"
    shutil.rmtree(".iterit/states")  # pruned
    assert passes("models/1").startswith(seal_line)

    dvc(after_a_run, "remote", "add", "--default", "store", str(tmp_path / "store"))
    dvc(after_a_run, "push", "--quiet")
    git("commit", "--quiet", "--all", "--message", "a remote")
    git("clone", "--quiet", str(after_a_run), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    dvc(tmp_path / "clone", "pull", "--quiet")
    assert passes().startswith(seal_line)
    monkeypatch.chdir(after_a_run)

    call(after_a_run, "dvc", "exp", "run", "--quiet", "--name", "other", "-S", "select.strategy=random")
    git("checkout", "--quiet", "--", "params.yaml", "dvc.lock", "metrics", "plots")
    dvc(after_a_run, "checkout", "--quiet")
    assert passes().startswith(seal_line)
    dvc(after_a_run, "exp", "apply", "--quiet", "other")
    assert passes().startswith("compared with the workspace alone; no sealed commit has this checkpoint")
    assert passes(first).startswith(f"{seal_line} itself")

    edit_params(after_a_run, {"iterations": {"1": {"parent": "base"}}}, replace=True)
    assert "iteration 1, " in verify()[1][-2]
    passes()
    call(after_a_run, "dvc", "repro", "--quiet")
    passes()
    passes("models/2")


def test_a_project_below_the_root_of_its_repository_is_sealed_and_verified(
    finished_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, folder = tmp_path / "root", tmp_path / "root/below/project"
    shutil.copytree(finished_pipeline, folder, ignore=shutil.ignore_patterns(".git"))
    git("init", "--quiet", str(root))
    monkeypatch.chdir(folder)
    git("add", "--all")
    git("commit", "--quiet", "--message", "start")
    commit(folder)
    finish_register(folder)
    tag, digest = seal(), folder_digest(Path("models/2"))
    code, lines = verify()
    assert code == 0, lines
    assert f"(tag {tag})" in lines[-1]
    for place in ("models/2", "provenance", "data/iterations/1", "metrics/evaluate", "plots"):
        shutil.rmtree(place)
    code, lines = verify(digest)  # from git and DVC's cache
    assert code == 0, lines
    assert lines[-1].endswith("itself; there is no signature")
