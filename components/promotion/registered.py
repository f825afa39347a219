"""What the last `register` made of the checkpoint: its version, the gate's decision, MLflow's run. Never versioned."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from components.core.files import read_json, write_json
from components.core.paths import REGISTERED
from components.promotion.gate import Decision


@dataclass(frozen=True, slots=True)
class Registered:
    """A version of the registered model."""

    model: str
    checkpoint: str
    """The checkpoint's digest."""
    version: str
    alias: str
    new: bool
    """False when a version held the checkpoint already."""
    gate: Decision
    run_id: str
    url: str
    """MLflow's page of the run."""


def write_registered(registered: Registered) -> None:
    """Note down the version for the flow, which seals and shows it."""
    write_json(REGISTERED, asdict(registered))


def read_registered() -> Registered | None:
    """The version that `register` noted down last; None when it never ran in this workspace."""
    if not REGISTERED.is_file():
        return None
    values = read_json(REGISTERED)
    return Registered(**{**values, "gate": Decision(**values["gate"])})
