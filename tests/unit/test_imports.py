"""Importing a stage is cheap: heavy libraries are imported only by what uses them, when it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from components.provenance.pipeline import stage_modules
from components.strategies import STRATEGIES
from tests.support.project import SOURCE

HEAVY = {
    *("accelerate", "datasets", "deepspeed", "dvc", "fastapi", "gguf", "huggingface_hub", "mlflow", "numba", "numpy"),
    *("pandas", "peft", "prefect", "pyarrow", "safetensors", "scipy", "sklearn", "sqlalchemy", "tokenizers"),
    *("torch", "transformers"),
}
ALLOWED = {  # stages -> heavy libraries that importing their modules may import
    ("manifest", "base_model"): set(),
    ("benchmark_data", "benchmark", "contamination"): {"numpy", "pyarrow"},
    ("ingest", "dedupe", "score", "select", "finetune", "evaluate", "report", "register"): {"numpy", "pyarrow"},
}


def imported_by(code: str) -> set[str]:
    """The heavy libraries in sys.modules after `code` in a new process."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return HEAVY & set(subprocess.run(command, cwd=SOURCE, check=True, capture_output=True, text=True).stdout.split())


def test_every_stage_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SOURCE)
    assert {f"components.{name}" for names in ALLOWED for name in names} == set(stage_modules().values())


@pytest.mark.parametrize(("names", "allowed"), ALLOWED.items())
def test_importing_a_stage_imports_no_heavy_library_but_those_for_its_tables(
    names: tuple[str, ...], allowed: set[str]
) -> None:
    assert imported_by("\n".join(f"import components.{name}" for name in names)) <= allowed


def test_no_strategy_but_iterit_imports_numba() -> None:
    others = [name for name, module in STRATEGIES.items() if module != "iterit"]
    load = "from components.strategies import load_strategy\nlist(map(load_strategy, {}))"
    assert "numba" not in imported_by(load.format(others))
    assert "numba" in imported_by(load.format(["iterit"]))
