"""Docstrings of the standard library of the running Python: real data that every machine has.

The source files are parsed and never imported, because some modules have side effects on import and some do not exist
on every platform. The same Python version gives the same items in the same order.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from components.data_sources.item import Item, Items

# tests and their data, generated tables, applications, and packages installed beside the standard library
EXCLUDED = {
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "turtledemo",
    "__pycache__",
    "pydoc_data",
}


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def read_docstrings(library: Path | None = None) -> Items:
    """Yield a value of Alpaca's shape for every public function, class and method that has a docstring.

    `library`: the folder to read instead of the running Python's standard library.
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py"), key=lambda file: file.relative_to(library).parts):
        parts = path.relative_to(library).with_suffix("").parts
        if EXCLUDED.isdisjoint(parts) and all(_is_public(part) for part in parts):
            yield from _read_module(path, parts)


def _read_module(path: Path, parts: tuple[str, ...]) -> Items:
    """Yield the docstrings of a module's file; `parts` is its path in the library, without the ending."""
    module = ".".join(part for part in parts if part != "__init__")
    for qualified_name, definition in _public_definitions(ast.parse(path.read_bytes()), module):
        docstring = ast.get_docstring(definition)  # without its indentation
        if docstring:
            yield Item(
                f"{qualified_name} ({Path(*parts).as_posix()}.py line {definition.lineno})",
                {
                    "instruction": f"Write the docstring of this Python {_kind(definition)}.",
                    "input": _signature(definition, qualified_name),
                    "output": docstring,
                },
            )


def _is_public(part: str) -> bool:
    """Whether a public module's name can contain this part of a path (config-3.11-x86_64-linux-gnu is none)."""
    return part == "__init__" or (part.isidentifier() and not part.startswith("_"))


def _public_definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    """Yield the qualified name and the syntax tree of each definition, in the order of the file."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            name = f"{prefix}.{child.name}"
            if not child.name.startswith("_"):
                yield name, child
                if isinstance(child, ast.ClassDef):
                    yield from _public_definitions(child, name)
        elif isinstance(child, ast.If | ast.Try):  # definitions that depend on the platform
            yield from _public_definitions(child, prefix)


def _kind(definition: Definition) -> str:
    return "class" if isinstance(definition, ast.ClassDef) else "function"


def _signature(definition: Definition, qualified_name: str) -> str:
    """`def os.path.join(a, *p):` or `class json.JSONDecoder(object):`, on one line."""
    if isinstance(definition, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in definition.bases)
        return f"class {qualified_name}({bases}):" if bases else f"class {qualified_name}:"
    returns = f" -> {ast.unparse(definition.returns)}" if definition.returns else ""
    keyword = "async def" if isinstance(definition, ast.AsyncFunctionDef) else "def"
    return f"{keyword} {qualified_name}({ast.unparse(definition.args)}){returns}:"
