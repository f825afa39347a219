"""Documentation strings of the running Python's standard library: real data that every machine has.

The source files are parsed, never imported: modules of the standard library may have side effects, and some are not
there on every platform. The same Python version gives the same items in the same order.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from components.data_sources.item import Item, Items

# tests and their data, generated tables, and what is installed beside the standard library
LEFT_OUT = {
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
    """Yield one Alpaca-shaped value for each public function, class and method that has a docstring."""
    library = library or Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py"), key=lambda file: file.relative_to(library).parts):
        parts = path.relative_to(library).with_suffix("").parts
        if LEFT_OUT & set(parts) or not all(_is_public(part) for part in parts):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        tree = ast.parse(path.read_bytes())
        for qualified_name, definition in _public_definitions(tree, module):
            documentation = ast.get_docstring(definition)  # without the indentation
            if documentation:
                yield Item(
                    f"{qualified_name} ({Path(*parts).as_posix()}.py line {definition.lineno})",
                    {
                        "instruction": f"Write the docstring of this Python {_kind(definition)}.",
                        "input": _signature(definition, qualified_name),
                        "output": documentation,
                    },
                )


def _is_public(part: str) -> bool:
    """Whether a part of a path belongs to a module's public name (config-3.11-x86_64-linux-gnu does not)."""
    return part == "__init__" or (part.isidentifier() and not part.startswith("_"))


def _public_definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
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
    prefix = "async def" if isinstance(definition, ast.AsyncFunctionDef) else "def"
    return f"{prefix} {qualified_name}({ast.unparse(definition.args)}){returns}:"
