"""Reads a statement: what a stage recorded of its command, parameters, inputs, code and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.provenance.statements import digest_in, stage_of


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of an artifact, in hex."""

    digest: str
    """The digest by which this project knows it: SHA-256 of a file, folder_digest of a folder."""
    dir_hash: str | None
    """in-toto's dirHash of a folder; None for a file, and in older statements."""


@dataclass(frozen=True, slots=True)
class CodeVersion:
    """The last commit that changed the code, and whether its files were as committed when the stage ran."""

    commit: str
    clean: bool


@dataclass(frozen=True, slots=True)
class RecordedStage:
    """A stage as its statement describes it; `inputs` (code files included) and `outputs` are path -> digests."""

    name: str
    command: str
    params: Mapping[str, Any]
    seeds: Mapping[str, int]
    inputs: Mapping[str, Digests]
    outputs: Mapping[str, Digests]
    code: CodeVersion | None
    """None outside a git repository."""
    packages: list[str]
    """NAME@VERSION."""


def parse_statement(statement: Mapping[str, Any]) -> RecordedStage:
    """The stage that a statement describes; raises AttributeError, KeyError or TypeError for other JSON."""
    definition = statement["predicate"]["buildDefinition"]
    external = definition["externalParameters"]
    dependencies = definition.get("resolvedDependencies", ())
    return RecordedStage(
        stage_of(statement),
        external.get("command", ""),
        external.get("params", {}),
        definition.get("internalParameters", {}).get("seeds", {}),
        {one["name"]: parse_digests(one) for one in dependencies if "uri" not in one},
        {one["name"]: parse_digests(one) for one in statement["subject"]},
        next((_code_version(one) for one in dependencies if one["name"] == "code" and "uri" in one), None),
        [one["uri"].removeprefix("pkg:pypi/") for one in dependencies if one.get("uri", "").startswith("pkg:pypi/")],
    )


def parse_digests(described: Mapping[str, Any]) -> Digests:
    """The digests of a subject or dependency, of any version of this package."""
    return Digests(digest_in(described) or "", described.get("digest", {}).get("dirHash"))


def _code_version(described: Mapping[str, Any]) -> CodeVersion:
    return CodeVersion(described["digest"]["gitCommit"], described["annotations"]["clean"])
