"""What the last run of the stage `register` did: the version, the gate's decision, the MLflow run. Never versioned."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from components.core.files import read_json, write_json
from components.core.paths import REGISTERED
from components.promotion.gate import Decision


@dataclass(frozen=True, slots=True)
class Registered:
    """The version of the registered model that holds the checkpoint."""

    model: str
    checkpoint: str
    """Digest of the checkpoint."""
    version: str
    alias: str
    new: bool
    """False when an earlier version holds the checkpoint."""
    gate: Decision
    run_id: str
    url: str
    """MLflow's page of the run."""


def write_registered(registered: Registered) -> None:
    """Note down the version for the flow, which commits the run and prints the version."""
    write_json(REGISTERED, asdict(registered))


def read_registered(checkpoint: str) -> Registered | None:
    """The version that `register` noted down, if it holds the checkpoint of this digest; None when it never did."""
    if not REGISTERED.is_file():
        return None
    values = read_json(REGISTERED)
    if values["checkpoint"] != checkpoint:  # `git checkout` and `dvc exp apply` bring other checkpoints
        return None
    return Registered(**{**values, "gate": Decision.from_json(values["gate"])})
