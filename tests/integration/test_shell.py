"""No name or value of params.yaml is run by the shell that DVC hands a stage's command to."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support.project import call, make_project

NAMES = [
    "a;touch pwned",
    "a'; touch pwned; '",
    "a$(touch pwned)",
    "a`touch pwned`",
    "a\ntouch pwned\n",
    "a && touch pwned",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    return make_project(tmp_path_factory.mktemp("project"), small_model)


def rewrite(project: Path, block: str, value: object) -> None:
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    if block == "files":
        params["ingest"]["files"] = value
    else:
        params["iterations"] = value
    yaml.dump(params, project / "params.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_a_source_s_name_is_no_command(project: Path, name: str) -> None:
    before = (project / "params.yaml").read_bytes()
    rewrite(project, "files", {name: {"path": "data/incoming"}})
    output = call(project, "dvc", "repro", "--single-item", f"manifest@{name}", expect=255)
    (project / "params.yaml").write_bytes(before)
    assert "a name is made of letters, digits, - and _" in output
    assert not (project / "pwned").exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["key", "parent"])
def test_an_iteration_s_key_and_parent_are_no_commands(project: Path, name: str, which: str) -> None:
    before = (project / "params.yaml").read_bytes()
    key, parent = (name, "base") if which == "key" else ("1", name)
    rewrite(project, "iterations", {key: {"parent": parent}})
    # what DVC wants to see before it starts the command
    of_key = [f"iterations/{key}/{table}.parquet" for table in ("scores", "embeddings")]
    for path in ("pool.parquet", *of_key, f"iterations/{parent}/candidates.parquet"):
        (project / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (project / "data" / path).touch()
    output = call(project, "dvc", "repro", "--single-item", f"select@{key}", expect=255)
    (project / "params.yaml").write_bytes(before)
    if which == "key" or "\n" not in name:  # DVC ends the command at the newline: it is none then
        assert "a name is made of letters, digits, - and _" in output
    assert not (project / "pwned").exists()
