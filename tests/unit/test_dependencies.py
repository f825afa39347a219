"""pyproject.toml names what our code imports, and nothing else; the lock has one version of each."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

PROJECT = Path(__file__).parents[2]
BOUNDS_ALONE = {"fastapi"}  # needed by Prefect; pyproject.toml says why it is bounded


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    with (PROJECT / "pyproject.toml").open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    return {normal(re.match(r"[\w.-]+", dependency)[0]) for dependency in dependencies}


def imported_packages() -> set[str]:
    """Top-level names that our code imports, without the standard library's and our own."""
    names = set()
    for file in (file for folder in ("components", "flows") for file in (PROJECT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"components", "flows"}


def test_every_import_is_declared_and_every_declaration_is_imported() -> None:
    providers = packages_distributions()
    unused = declared()
    for name in imported_packages():
        distributions = {normal(distribution) for distribution in providers.get(name, [name])}
        assert distributions & declared(), f"{name} is imported, and no dependency of pyproject.toml provides it"
        unused -= distributions
    assert unused == BOUNDS_ALONE


def test_the_lock_has_an_exact_version_of_every_dependency() -> None:
    lock = (PROJECT / "requirements.lock").read_text(encoding="utf-8").split()
    assert all("==" in line for line in lock)
    assert declared() <= {normal(line.partition("==")[0]) for line in lock}
