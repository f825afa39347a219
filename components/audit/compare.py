"""Compares two checkpoints: their records, parameters, code and packages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from components.audit.describe import CheckpointDescription, IterationDescription, describe_checkpoint
from components.audit.find import Checkpoint
from components.core.files import flatten
from components.provenance.recorded import CodeVersion


@dataclass(frozen=True, slots=True)
class RecordDifference:
    """Ids of the records that trained only one of the checkpoints, and the number of those that trained both."""

    only_first: list[str]
    only_second: list[str]
    common: int


@dataclass(frozen=True, slots=True)
class PackageDifference:
    """NAME@VERSION of the packages that only one of the last iterations used."""

    only_first: list[str]
    only_second: list[str]


@dataclass(frozen=True, slots=True)
class Overlap:
    """The selections of an iteration in both chains: records in common, and their Jaccard index."""

    iteration: str
    common: int
    jaccard: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two checkpoints; parameters, code and packages are those of the last iterations."""

    checkpoints: tuple[str, str]
    records: RecordDifference
    overlap: list[Overlap]
    params: Mapping[str, tuple[Any, Any]]
    """Dotted key -> the two values; None where a checkpoint does not have the key."""
    code: tuple[CodeVersion | None, CodeVersion | None]
    packages: PackageDifference


def compare_checkpoints(first: Checkpoint, second: Checkpoint) -> Comparison:
    """What differs between two checkpoints. Raises UserError when a statement or a table of a chain is lost."""
    chains = [describe_checkpoint(checkpoint, every_record=True) for checkpoint in (first, second)]
    ids = [_ids(chain.iterations) for chain in chains]
    packages = [set(last.packages) if (last := _last(chain)) else set() for chain in chains]
    code = [last.code if (last := _last(chain)) else None for chain in chains]
    return Comparison(
        (first.digest, second.digest),
        RecordDifference(sorted(ids[0] - ids[1]), sorted(ids[1] - ids[0]), len(ids[0] & ids[1])),
        [_overlap(*pair) for pair in zip(*(chain.iterations for chain in chains), strict=False)],
        _changed_params(*chains),
        (code[0], code[1]),
        PackageDifference(sorted(packages[0] - packages[1]), sorted(packages[1] - packages[0])),
    )


def _ids(iterations: Iterable[IterationDescription]) -> set[str]:
    return {pick.id for iteration in iterations for pick in iteration.picks}


def _last(chain: CheckpointDescription) -> IterationDescription | None:
    return chain.iterations[-1] if chain.iterations else None


def _overlap(first: IterationDescription, second: IterationDescription) -> Overlap:
    ids, other_ids = _ids([first]), _ids([second])
    common, union = len(ids & other_ids), len(ids | other_ids)
    return Overlap(first.iteration, common, round(common / union, 6) if union else 1.0)


def _changed_params(*chains: CheckpointDescription) -> dict[str, tuple[Any, Any]]:
    first, second = (flatten(last.params) if (last := _last(chain)) else {} for chain in chains)
    return {
        key: (first.get(key), second.get(key)) for key in sorted({*first, *second}) if first.get(key) != second.get(key)
    }
