"""What the page of a run is made from: the files of a project where dvc.yaml puts them, and what the registry said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import UserError, first_line
from components.core.files import read_csv, read_json, require_file
from components.core.settings.pipeline import Settings
from components.evaluation.holdout import HoldoutMetrics, SourceMetrics
from components.promotion.gate import choose
from components.promotion.registered import Registered

METRICS, PLOTS, ITERATIONS = Path("metrics"), Path("plots"), Path("data/iterations")
EVALUATIONS, SAMPLES = Path("data/evaluations"), Path("samples")
POOL, REJECTED, NOISE = (Path(f"data/{name}.parquet") for name in ("pool", "rejected", "noise"))


@dataclass(frozen=True, slots=True)
class Run:
    """A run in the current folder."""

    settings: Settings
    registered: Registered | None
    """What the registry holds of its checkpoint; None where that is not known here."""
    tag: str | None
    """The git tag of the sealed run."""

    @property
    def iterations(self) -> list[str]:
        return list(self.settings.iterations)

    @property
    def checkpoints(self) -> list[str]:
        """Keys of the base model and of the iterations."""
        return ["base", *self.iterations]


def numbered(run: Run) -> Iterator[tuple[int, str]]:
    """Number and key of the base model (0) and of each iteration."""
    yield from enumerate(run.checkpoints)


def read_holdout(key: str) -> HoldoutMetrics:
    """The metrics of a checkpoint. Raises UserError when the file is missing, or of an older version."""
    path = METRICS / "evaluate" / f"{key}.json"
    return _metrics_in(path, read_json(path))


def read_target(key: str) -> HoldoutMetrics | None:
    """The metrics of a checkpoint on the targets; None without any. Raises UserError as read_holdout does."""
    path = METRICS / "evaluate" / f"{key}.json"
    target = read_json(path).get("target")
    return _metrics_in(path, target) if target else None


def _metrics_in(path: Path, values: Mapping[str, Any]) -> HoldoutMetrics:
    try:
        sources = {name: SourceMetrics(**figures) for name, figures in values["sources"].items()}
        named = {field.name: values[field.name] for field in fields(HoldoutMetrics)}
        return HoldoutMetrics(**{**named, "sources": sources})
    except KeyError as error:
        raise UserError(f"{path}: no {error}: an older version wrote it; `dvc repro` makes it again") from None


def chosen_iteration(run: Run) -> str:
    """The iteration whose checkpoint is registered."""
    result = METRICS / "register.json"
    if result.is_file():
        return str(read_json(result)["iteration"])
    holdouts: dict[str, Mapping[str, Any]] = {
        key: read_json(METRICS / "evaluate" / f"{key}.json") for key in run.iterations
    }
    return choose(holdouts, run.settings.gate)


def read_series(name: str) -> list[dict[str, str]]:
    """A file that the stage `report` wrote. Raises UserError when it is missing."""
    return read_csv(PLOTS / f"{name}.csv")


def read_columns(path: Path, names: list[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of some columns of a table. Raises UserError when the file is missing or not such a table."""
    require_file(path)
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(columns=names)
            columns = [table[name].to_pylist() for name in names]
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet table: {first_line(error)}") from error
    yield from zip(*columns, strict=True)
