"""The documents are true as far as a machine can tell: links, paths, names, the table of rooms, the examples."""

from __future__ import annotations

import re
import sqlite3
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ruamel.yaml import YAML

from components.core.errors import UserError
from components.core.settings.select import SelectSettings
from components.data.records import Message, make_record
from components.data_sources.shapes import finish, recognize
from components.strategies.interface import Budget, Candidates
from tests.unit.test_layout import ROOMS

PROJECT = Path(__file__).parents[2]
DOCUMENTS = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted((PROJECT / "benchmarks").glob("*.md")),
]
HISTORY = {"CHANGELOG.md", "LOG.md"}  # name what was there once
FOLDERS = ("components", "flows", "docs", "conf", "examples", "tests", "benchmarks")
PATH = rf"(?:{'|'.join(FOLDERS)})/[\w./-]*"


def prose(document: Path) -> str:
    """The text without its fenced blocks: these show files that a reader makes."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def named(documents: list[Path]) -> list[object]:
    return [pytest.param(document, id=document.relative_to(PROJECT).as_posix()) for document in documents]


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", named(DOCUMENTS))
def test_a_relative_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("document", named([document for document in DOCUMENTS if document.name not in HISTORY]))
def test_a_path_in_backticks_exists(document: Path) -> None:
    for path in re.findall(rf"`({PATH})`", prose(document)):
        assert (PROJECT / path).exists(), path


@pytest.mark.parametrize("document", named([document for document in DOCUMENTS if document.name not in HISTORY]))
def test_a_name_beside_a_path_is_in_that_file(document: Path) -> None:
    """`name` in `path`, in prose or in neighbouring cells of a table."""
    for name, path in re.findall(rf"`([\w.]+)`(?: in | \| )`({PATH})`", prose(document)):
        text = (PROJECT / path).read_text(encoding="utf-8")
        assert re.search(rf"\b{re.escape(name)}\b", text), f"{name} in {path}"


def test_the_readme_is_short() -> None:
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_workarounds_are_those_of_the_locked_versions() -> None:
    text = (PROJECT / "docs/workarounds.md").read_text(encoding="utf-8")
    headings = " ".join(re.findall(r"^## (.+)$", text, flags=re.MULTILINE))
    versions = re.findall(r"(\w+) (\d+\.\d[\d.]*)", headings)
    assert len(versions) >= 9
    lock = (PROJECT / "requirements.lock").read_text(encoding="utf-8").lower().split()
    assert {f"{name.lower()}=={version}" for name, version in versions} <= set(lock)


def rooms_table() -> Iterator[list[str]]:
    """The rows of the table of rooms in docs/architecture.md, as lists of cells."""
    text = (PROJECT / "docs/architecture.md").read_text(encoding="utf-8")
    table = text.partition("| room |")[2].partition("\n\n")[0].splitlines()[2:]
    for line in table:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_and_the_picture_of_the_rooms_are_those_that_the_layout_allows() -> None:
    table = {cells[0].strip("`"): set(re.findall(r"`(\w+)`", cells[2])) for cells in rooms_table()}
    assert table == ROOMS
    picture = (PROJECT / "docs/architecture.md").read_text(encoding="utf-8").partition("subgraph rooms")[2]
    arrows = defaultdict(set)
    for above, below in re.findall(r"^ +(\w+) --> (\w+)$", picture.partition("end\n")[0], flags=re.MULTILINE):
        arrows[above].add(below)
    assert {room: arrows[room] for room in ROOMS} == ROOMS


def test_the_table_of_rooms_names_the_stages_that_depend_on_each() -> None:
    stages = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for room, _, _, again in rooms_table():
        folder = f"components/{room.strip('`')}"
        whole = {name for name, stage in stages.items() if folder in stage.get("do", stage)["deps"]}
        said = set(re.findall(r"`(\w+)`", again.partition("(")[0]))
        assert said == whole - {"evaluate_base"}, room


def example(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that docs/extending.md shows under the comment `# path`."""
    text = (PROJECT / "docs/extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"^```python\n# {path}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    module = ModuleType(f"example_{Path(path).stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look there
    exec(compile(code, path, "exec"), module.__dict__)
    return module


def test_the_example_of_a_strategy_picks_the_shortest_scorable_records(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("components/strategies/shortest.py", monkeypatch)
    losses = np.array([0.5, np.nan, 0.7, 0.9])
    candidates = Candidates(list("abcd"), ["one", "two", "three", "four"], losses, losses, losses > 0)
    picks = module.select(candidates, Budget.of(2, [30, 1, 10, 20]), SelectSettings())
    assert picks.indices.tolist() == [2, 3]


def test_the_example_of_a_source_yields_rows_with_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("components/data_sources/sqlite.py", monkeypatch)
    with sqlite3.connect(tmp_path / "a b.db") as database:
        database.execute("create table t as select 'Say one.' as instruction, 'one' as output")
    (item,) = module.read_sqlite(tmp_path / "a b.db", "select * from t")
    assert item.where.endswith("a b.db row 1")
    assert finish(recognize(item.value)(item.value))[0][-1].content == "one"
    with pytest.raises(UserError, match="no such table"):
        list(module.read_sqlite(tmp_path / "a b.db", "select * from missing"))


def test_the_example_of_a_model_kind_finds_the_model_in_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("components/model_sources/archive.py", monkeypatch)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "model", "model")
    folder = module.extract_archive(tmp_path / "model.tar.gz", tmp_path / "out")
    assert folder == tmp_path / "out" / "model"
    (tmp_path / "none").write_text("text")
    with pytest.raises(UserError, match="not a readable tar archive"):
        module.extract_archive(tmp_path / "none", tmp_path / "out")


def test_the_example_of_a_stage_measures_and_its_entry_in_dvc_yaml_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("components/lengths.py", monkeypatch)
    texts = ["one", "three", "seven"]
    records = [make_record("a", [Message("user", "Say it."), Message("assistant", text)]) for text in texts]
    assert module.measure_lengths(records) == module.Lengths(3, 5, 5)
    text = (PROJECT / "docs/extending.md").read_text(encoding="utf-8")
    (entry,) = re.findall(r"^```yaml\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert YAML(typ="safe").load(entry)["lengths"]["cmd"] in module.__doc__


def test_the_example_of_an_evaluation_counts_repeated_ngrams(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("components/evaluation/repetition.py", monkeypatch)
    assert module.repeated_share(["a b c d", "no"]) == 0.0
    assert module.repeated_share(["a b c a b c"]) == 0.25
    assert module.repeated_share([]) == 0.0
