"""Importing a stage is cheap: heavy libraries are imported only by what uses them, when it is used."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from components.provenance.pipeline import stage_modules
from components.strategies import STRATEGIES
from tests.support.project import SOURCE

HEAVY = {
    *("accelerate", "datasets", "deepspeed", "dvc", "fastapi", "gguf", "huggingface_hub", "mlflow", "numba", "numpy"),
    *("pandas", "peft", "prefect", "pyarrow", "rensa", "safetensors", "scipy", "sklearn", "sqlalchemy", "tokenizers"),
    *("torch", "transformers"),
}
TABLES = {"numpy", "pyarrow"}
IMPORTS = {  # stage module -> heavy libraries that its import imports
    "manifest": set(),
    "base_model": set(),
    "ingest": TABLES,
    "dedupe": TABLES,
    "score": TABLES,
    "select": TABLES,
    "finetune": TABLES,
    "evaluate": TABLES,
    "report": TABLES,
    "register": TABLES,
}


def imported_by(code: str) -> set[str]:
    """The heavy libraries in sys.modules after `code` in a new process."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return HEAVY & set(subprocess.run(command, cwd=SOURCE, check=True, capture_output=True, text=True).stdout.split())


def test_importing_a_stage_imports_no_heavy_library_but_those_for_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SOURCE)
    assert {f"components.{name}" for name in IMPORTS} == set(stage_modules().values())
    with ThreadPoolExecutor(2) as pool:
        imported = pool.map(imported_by, [f"import components.{name}" for name in IMPORTS])
    assert dict(zip(IMPORTS, imported, strict=True)) == IMPORTS


def test_no_strategy_but_iterit_imports_numba() -> None:
    others = [name for name, module in STRATEGIES.items() if module != "iterit"]
    load = "from components.strategies import load_strategy\nlist(map(load_strategy, {}))"
    assert "numba" not in imported_by(load.format(others))
    assert "numba" in imported_by(load.format(["iterit"]))
