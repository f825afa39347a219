"""A statement describes the inputs that a stage began with, or is not written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.core.errors import InputsChangedError, UserError, exit_on_user_error
from components.core.files import read_json
from components.provenance.digests import digest_set, file_digest, folder_digest
from components.provenance.recorded import Digests, parse_digests, parse_statement
from components.provenance.statements import digest_in, statement_of

STAGES = """
stages:
  select:
    foreach: ${iterations}
    do:
      cmd: python -m components.select --model models/${item.parent}
      deps: [pool, "models/${item.parent}"]
      params: [select, score.system]
      outs: ["subsets/${key}", "provenance/select@${key}.json"]
  report:
    cmd: python -m components.report
    deps: [pool]
    outs: [summary]
"""
PARAMS = """
score: {system: be brief, dtype: float32}
select: {ratio: 0.5, seed: 7}
iterations: {"1": {parent: base}}
"""
STATEMENT = Path("provenance/select@1.json")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(STAGES)
    Path("params.yaml").write_text(PARAMS)
    Path("pool").write_text("records")
    Path("models/base").mkdir(parents=True)
    Path("models/base/config.json").write_text("{}")
    return tmp_path


def write_output() -> None:
    Path("subsets").mkdir(exist_ok=True)
    Path("subsets/1").write_text("records")


def replace(path: str, old: str, new: str) -> Callable[[], None]:
    def edit() -> None:
        text = Path(path).read_text()
        assert old in text
        Path(path).write_text(text.replace(old, new))

    return edit


def test_a_statement_names_command_parameters_inputs_and_outputs() -> None:
    with statement_of("select@1"):
        write_output()
    statement = read_json(STATEMENT)
    assert statement["subject"] == [{"name": "subsets/1", "digest": {"sha256": file_digest(Path("subsets/1"))}}]
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {
        "stage": "select@1",
        "command": "python -m components.select --model models/base",
        "params": {"select": {"ratio": 0.5, "seed": 7}, "score.system": "be brief"},
    }
    assert definition["internalParameters"] == {"seeds": {"select": 7}}
    files = [dependency for dependency in definition["resolvedDependencies"] if "uri" not in dependency]
    assert files == [
        {"name": "models/base", "digest": digest_set(Path("models/base"))},
        {"name": "pool", "digest": {"sha256": file_digest(Path("pool"))}},
    ]


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        (replace("params.yaml", "ratio: 0.5", "ratio: 0.6"), "params.yaml: select"),
        (replace("params.yaml", "be brief", "be kind"), "params.yaml: score.system"),
        (replace("params.yaml", "select: {ratio: 0.5, seed: 7}", ""), "params.yaml: select"),
        (replace("params.yaml", "parent: base", "parent: other"), "dvc.yaml, models/base"),
        (replace("dvc.yaml", "--model", "--parent"), "dvc.yaml"),
        (replace("pool", "records", "others"), "pool"),
        (lambda: Path("pool").unlink(), "pool"),
        (replace("models/base/config.json", "{}", "[]"), "models/base"),
        (lambda: Path("models/base/added").write_text(""), "models/base"),
        (lambda: shutil.rmtree("models/base"), "models/base"),
    ],
)
def test_a_stage_whose_inputs_change_while_it_runs_ends_with_code_75_and_no_statement(
    edit: Callable[[], None], changed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_user_error(), statement_of("select@1"):
        write_output()
        edit()
    assert ended.value.code == 75
    expected = f"error: select@1: {changed} changed while the stage ran; its results are not recorded, run it again\n"
    assert capsys.readouterr().err == expected
    assert not STATEMENT.exists()


def test_edits_that_do_not_concern_the_stage_do_not_stop_it() -> None:
    with statement_of("select@1"):
        write_output()
        replace("params.yaml", "float32", "float64")()
        replace("params.yaml", "select: {ratio: 0.5, seed: 7}", "select: {seed: 7, ratio: 0.5}  # as it was")()
        replace("dvc.yaml", "components.report", "components.summary")()
        Path("unrelated").write_text("")
    assert STATEMENT.exists()


def test_unchanged_inputs_give_the_same_statement_again() -> None:
    texts = []
    for _ in range(2):
        with statement_of("select@1"):
            write_output()
        texts.append(STATEMENT.read_bytes())
    assert texts[0] == texts[1]


def test_a_stage_that_fails_keeps_its_own_error_and_writes_no_statement() -> None:
    with pytest.raises(ZeroDivisionError), statement_of("select@1"):
        replace("pool", "records", "others")()
        1 / 0  # noqa: B018
    assert not STATEMENT.exists()


def test_a_missing_input_is_reported_by_the_stage_that_needs_it() -> None:
    Path("pool").unlink()
    replace("params.yaml", "select: {ratio: 0.5, seed: 7}", "")()
    with pytest.raises(UserError, match="no pool"), statement_of("select@1"):
        raise UserError("no pool")


def test_a_stage_that_the_pipeline_does_not_have_is_a_mistake_of_the_user() -> None:
    for name in ("select@2", "choose"):
        with pytest.raises(UserError, match=f"^dvc.yaml: stage {name}: ") as raised, statement_of(name):
            pass
        assert not isinstance(raised.value, InputsChangedError)


def test_a_stage_without_a_statement_or_a_pipeline_just_runs() -> None:
    with statement_of("report"):
        Path("pool").unlink()
    Path("dvc.yaml").unlink()
    with statement_of("select@1"):
        pass
    assert not Path("provenance").exists()


def test_a_statement_is_read_as_it_was_written() -> None:
    with statement_of("select@1"):
        write_output()
    stage = parse_statement(read_json(STATEMENT))
    assert (stage.name, stage.command) == ("select@1", "python -m components.select --model models/base")
    assert stage.params == {"select": {"ratio": 0.5, "seed": 7}, "score.system": "be brief"}
    assert stage.seeds == {"select": 7}
    assert stage.outputs == {"subsets/1": Digests(file_digest(Path("subsets/1")), None)}
    model = Path("models/base")
    assert stage.inputs == {
        "models/base": Digests(folder_digest(model), digest_set(model)["dirHash"]),
        "pool": Digests(file_digest(Path("pool")), None),
    }
    assert stage.code is None
    assert any(package.startswith("torch@2.") for package in stage.packages)


def test_the_digest_of_a_folder_is_read_from_old_and_new_statements() -> None:
    folder, other = "a" * 64, "b" * 64
    new = {"name": "models/1", "digest": {"dirHash": other, "iteritFolder": folder}}
    old = {"name": "models/1", "digest": {"sha256": folder}}
    assert digest_in(new) == digest_in(old) == folder
    assert parse_digests(new) == Digests(folder, other)
    assert parse_digests(old) == Digests(folder, None)
    assert digest_in({"name": "torch", "uri": "pkg:pypi/torch@2.9.0"}) is None


@pytest.mark.parametrize("text", ["1", "[]", "{}", '{"predicate": 1}', '{"predicate": {"buildDefinition": []}}'])
def test_other_json_is_not_taken_for_a_statement(text: str) -> None:
    with pytest.raises((AttributeError, KeyError, TypeError)):
        parse_statement(json.loads(text))
