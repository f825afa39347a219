"""TODO"""

from __future__ import annotations

from typing import Any

from components.audit.describe import describe_checkpoint
from components.audit.find import Checkpoint


def compare_checkpoints(one: Checkpoint, other: Checkpoint) -> dict[str, Any]:
    """Which records, parameters, code and packages differ, and how the selections overlap iteration by iteration."""
    chains = [describe_checkpoint(checkpoint, every_record=True)["iterations"] for checkpoint in (one, other)]
    records = [{pick["id"] for step in chain for pick in step["picks"]} for chain in chains]
    overlap = []
    for first, second in zip(*chains, strict=False):
        ids = [{pick["id"] for pick in step["picks"]} for step in (first, second)]
        union = len(ids[0] | ids[1])
        overlap.append(
            {
                "iteration": first["iteration"],
                "common": len(ids[0] & ids[1]),
                "jaccard": round(len(ids[0] & ids[1]) / union, 6) if union else 1.0,
            }
        )
    settings = [_flat([step["params"] for step in chain[-1:]]) for chain in chains]
    packages = [set(chain[-1]["packages"]) if chain else set() for chain in chains]
    return {
        "checkpoints": [one.digest, other.digest],
        "records": {
            "only_first": sorted(records[0] - records[1]),
            "only_second": sorted(records[1] - records[0]),
            "common": len(records[0] & records[1]),
        },
        "overlap": overlap,
        "params": {
            key: [settings[0].get(key), settings[1].get(key)]
            for key in sorted({*settings[0], *settings[1]})
            if settings[0].get(key) != settings[1].get(key)
        },
        "code": [chain[-1]["code"] if chain else None for chain in chains],
        "packages": {"only_first": sorted(packages[0] - packages[1]), "only_second": sorted(packages[1] - packages[0])},
    }


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    items: list[tuple[str, Any]]
    if isinstance(values, dict):
        items = list(values.items())
    elif isinstance(values, list) and values and isinstance(values[0], dict):
        items = [(key, value) for one in values for key, value in one.items()]
    else:
        return {prefix.removesuffix("."): values}
    return {key: value for name, one in items for key, value in _flat(one, f"{prefix}{name}.").items()}
