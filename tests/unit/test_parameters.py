"""`iterit run --set KEY=VALUE`: params.yaml changes only when the whole of the result is valid."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.core.errors import UserError
from flows.parameters import set_parameters
from flows.workspace import check_workspace
from tests.support.project import edit_params

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What check_workspace looks for, as the current folder, with a base model in a folder."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(PROJECT / name, tmp_path / name)
    shutil.copytree(PROJECT / "conf", tmp_path / "conf")
    for name in (".git", ".dvc", "data/incoming", "model"):
        (tmp_path / name).mkdir(parents=True)
    edit_params(tmp_path, {"base_model": {"kind": "folder", "path": "model"}}, replace=True)
    edit_params(tmp_path, {"select": {"ratio": 0.2}, "finetune": {"seed": 42, "batch_size": 8}})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("select.ratio=1.5", "--set: select.ratio: 1.5 is neither a share (0 to 1] nor a whole number of records"),
        ("select.foo=1", "--set: select.foo: unknown key; known here: strategy, ratio"),
        ("selection.ratio=1", "--set selection.ratio=1: no block selection in params.yaml"),
        ("select.ratio.x=1", "--set select.ratio.x=1: select.ratio is not a block of params.yaml"),
        ("ratio", "--set ratio: expected KEY=VALUE"),
        ("=1", "--set =1: expected KEY=VALUE"),
        ("select.ratio=[", "--set select.ratio=[: '[' is not a YAML value"),
        ("base_model.path=nowhere", "params.yaml: base_model.path: nowhere: no such file or folder"),
        ("ingest.files.incoming.path=no.json", "params.yaml: ingest.files.incoming.path: no.json: no such file"),
        (
            "ingest.files.aim={path: data/incoming, target: true}",
            "params.yaml: ingest.files.aim: data/incoming: no record in it; a source with target: true needs at least",
        ),
        ("ingest.files.aim={path: t.jsonl, target: true}", "params.yaml: ingest.files.aim.path: t.jsonl: no such file"),
        ("finetune.deepspeed=zero9", "params.yaml: finetune.deepspeed: no conf/deepspeed/zero9.json; there are: zero0"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(folder: Path, assignment: str, line: str) -> None:
    before = (folder / "params.yaml").read_bytes()
    with pytest.raises(UserError) as error:
        set_parameters(["finetune.seed=7", assignment], check_workspace)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert (folder / "params.yaml").read_bytes() == before


def test_a_key_that_a_stage_depends_on_must_be_written_even_with_its_default(folder: Path) -> None:
    file = folder / "params.yaml"
    file.write_text("".join(line for line in file.open() if "template_date" not in line))
    with pytest.raises(UserError) as error:
        set_parameters([], check_workspace)
    assert str(error.value).startswith("params.yaml: score.template_date: missing; a stage depends on it")


def test_every_mistake_is_reported(folder: Path) -> None:
    with pytest.raises(UserError) as error:
        set_parameters(["base_model.path=nowhere", "finetune.deepspeed=zero9"], check_workspace)
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["base_model.path", "finetune.deepspeed"]


def test_comments_and_quotes_stay_when_a_parameter_is_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "params.yaml"
    file.write_text("# mine\n" + file.read_text().replace("name: iterit", 'name: "iterit"'))
    before = file.read_text()
    assert '"iterit"' in before
    settings = set_parameters(["select.ratio=12", "finetune.seed=7", "finetune.batch_size=8"], check_workspace)
    assert (settings.select.ratio, settings.finetune.seed) == (12, 7)
    assert file.read_text() == before.replace("ratio: 0.2", "ratio: 12").replace("seed: 42", "seed: 7")
    assert capsys.readouterr().out.splitlines() == [
        "params.yaml: select.ratio: 0.2 -> 12",
        "params.yaml: finetune.seed: 42 -> 7",
        "params.yaml: finetune.batch_size: 8, as before",
    ]


def test_without_assignments_the_file_is_only_checked(folder: Path) -> None:
    before = (folder / "params.yaml").stat()
    set_parameters([], check_workspace)
    assert (folder / "params.yaml").stat() == before
    (folder / "model").rmdir()
    with pytest.raises(UserError, match=r"base_model\.path: model: no such file or folder"):
        set_parameters([], check_workspace)


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("dvc.yaml", "dvc.yaml: not found; run in the project's folder"),
        (".dvc", ".dvc: not found; make it a DVC repository: dvc init"),
    ],
)
def test_a_folder_that_is_no_dvc_repository_is_reported_with_the_remedy(folder: Path, missing: str, line: str) -> None:
    (folder / missing).rename(folder / "elsewhere")
    with pytest.raises(UserError) as error:
        set_parameters([], check_workspace)
    assert str(error.value) == line
