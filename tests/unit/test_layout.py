"""The house: stages are stages, rooms are rooms, arrows go down, and DVC knows what each stage is made of."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from components.provenance.pipeline import find_stage, stage_modules

PROJECT = Path(__file__).parents[2]
CODE = ("components", "flows")

# Room -> rooms that it may import, beside core, which every room may import and which imports none.
ROOMS = {
    "core": set(),
    "data": set(),
    "provenance": set(),
    "data_sources": {"data"},
    "model_sources": {"model", "provenance"},
    "model": {"data"},
    "tracking": {"data", "provenance"},
    "strategies": set(),
    "noise": {"data"},
    "series": set(),
    "scoring": {"data", "model", "provenance"},
    "training": {"data", "model", "provenance"},
    "overlap": {"data"},
    "benchmarks": {"data", "evaluation", "model"},
    "evaluation": {"data", "model", "scoring"},
    "comparison": {"data", "evaluation", "model", "scoring"},
    "promotion": {"benchmarks", "data", "evaluation", "model", "provenance", "tracking"},
    "pages": {"comparison", "data", "evaluation", "promotion", "provenance"},
    "audit": {"data", "data_sources", "provenance", "tracking", "training"},
}
ONLY_IN = {"mlflow": "components/tracking/", "prefect": "flows/"}  # library -> where alone it is imported

# What a stage imports and what cannot change its outputs.
NO_DEPENDENCY = {
    "components/core/": "processes, files and checks; the defaults in core/settings/ are dependencies block by block",
    "components/provenance/": "writes the statement; digests.py is a dependency where outputs name a digest",
}
ALSO_NO_DEPENDENCY = {
    "report": {"components/training/"},  # takes away old trainer states at the end of a run
    # evaluates a champion again, on a new holdout or benchmark: that decides about the registry
    "register": {f"components/{room}/" for room in ("benchmarks", "data", "evaluation", "model", "scoring")},
}

KEYS = {
    "manifest": "@incoming",
    "benchmark": "@base",
    **dict.fromkeys(("score", "select", "finetune", "evaluate"), "@1"),
}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of all our modules."""
    files = [file for folder in CODE for file in sorted((PROJECT / folder).rglob("*.py"))]
    return {".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(file: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports anywhere, but under TYPE_CHECKING."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in modules() else node.module


def ours(file: Path) -> set[Path]:
    """The files of ours that a file imports."""
    return {modules()[name] for name in imported(file) if name in modules()}


def place(file: Path) -> str:
    """`core`, `data`, ... for a file of a room; `stage` for a stage's module; `flows`."""
    top, *rest = file.relative_to(PROJECT).parts
    if top == "flows":
        return "flows"
    return rest[0] if len(rest) > 1 else "stage"


def test_the_modules_directly_in_components_are_the_stages_of_dvc_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    files = {file.stem for file in (PROJECT / "components").glob("*.py")} - {"__init__"}
    named = stage_modules()
    assert {f"components.{name}" for name in files} == set(named.values())
    # two stages may share a module: evaluate_base is evaluate without an iteration
    assert {name: module for name, module in named.items() if f"components.{name}" != module} == {
        "evaluate_base": "components.evaluate"
    }


def test_every_room_imports_only_what_is_below_it() -> None:
    rooms = {path.parent.name for path in (PROJECT / "components").glob("*/__init__.py")}
    assert rooms == set(ROOMS), "a new room needs a row in this table, and in docs/architecture.md"
    wrong = []
    for file in modules().values():
        here = place(file)
        for target in sorted(ours(file) - {PROJECT / "components/__init__.py"}):
            there = place(target)
            if here == "flows":
                allowed = True
            elif here == "stage":
                allowed = there not in ("stage", "flows")
            else:
                allowed = there in ROOMS[here] | {here, "core"}
            if not allowed:
                wrong.append(f"{file.relative_to(PROJECT)} imports {target.relative_to(PROJECT)}")
    assert not wrong, wrong


def test_the_rooms_can_be_put_into_an_order() -> None:
    order = list(TopologicalSorter(ROOMS).static_order())
    assert set(order) == set(ROOMS)


def test_no_two_files_import_each_other_in_a_circle() -> None:
    graph = {file: ours(file) - {file} for file in modules().values()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the files


@pytest.mark.parametrize(("library", "room"), ONLY_IN.items())
def test_a_library_of_one_room_is_imported_there_alone(library: str, room: str) -> None:
    importing = {
        file.relative_to(PROJECT).as_posix()
        for file in modules().values()
        if any(name.split(".")[0] == library for name in imported(file))
    }
    assert importing
    assert {file for file in importing if not file.startswith(room)} == set()


def test_every_file_that_a_stage_uses_is_a_dependency_of_it_in_dvc_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    missing = []
    for name, module in stage_modules().items():
        dependencies = find_stage(f"{name}{KEYS.get(name, '')}").dependencies
        unneeded = {*NO_DEPENDENCY, *ALSO_NO_DEPENDENCY.get(name, ())}
        for file in sorted(reachable(modules()[module])):
            path = file.relative_to(PROJECT).as_posix()
            covered = any(path == known or path.startswith(f"{known}/") for known in dependencies)
            if not covered and not any(path.startswith(start) for start in unneeded) and file.name != "__init__.py":
                missing.append(f"{name}: {path}")
    assert not missing, missing


def test_every_stage_depends_on_the_defaults_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    settings = PROJECT / "components/core/settings"
    for name in stage_modules():
        stage = find_stage(f"{name}{KEYS.get(name, '')}")
        blocks = {block.split(".")[0] for block in stage.params if block.count(".") == 0 or name == "manifest"}
        for block in blocks:
            file = (settings / f"{block}.py").relative_to(PROJECT).as_posix()
            if (PROJECT / file).is_file():
                assert file in stage.dependencies, f"{name}: {file}"


def reachable(file: Path) -> set[Path]:
    """The files that a file imports, and those that they import."""
    seen, waiting = set(), [file]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += ours(current)
    return seen
