"""What each stage made of what: one in-toto attestation statement per stage, with the SLSA provenance predicate.

`provenance/STAGE.json` is written as the stage's last output, and versioned by DVC like the others. A sealed run also
puts all of them into git: `provenance.intoto.jsonl`, in-toto's bundle, has one per line. in-toto
(https://in-toto.io/Statement/v1) and SLSA (https://slsa.dev/provenance/v1) are what build systems sign and verifiers
read; here a checkpoint is what is built.

    subject                         outputs: path in the project, digests
    buildDefinition
      externalParameters            stage, command, and the stage's parameters
      internalParameters            seed, where there is one
      resolvedDependencies          inputs and code: path, digests; the code's git commit, and whether its files were as
                                    committed; the packages that matter
    runDetails.builder              this package

A file has its SHA-256, a folder in-toto's dirHash and this project's own digest (components/provenance/digests.py).
There is no time, host or run id in a statement: the same inputs give the same statement. A stage that is run by hand,
outside a project with a dvc.yaml, writes none.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from components.core.errors import InputsChangedError
from components.core.files import atomic_write, json_text, read_json, write_json
from components.core.params import read_params
from components.core.paths import PARAMS, PIPELINE
from components.provenance.digests import cached_file_digest, digest_set
from components.provenance.pipeline import FOLDER, StageDefinition, find_stage

BUNDLE = "provenance.intoto.jsonl"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:iterit:stage:v1"
CODE = ("components", "flows", "conf", "dvc.yaml", "pyproject.toml", "requirements.lock")
PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "peft", "tokenizers", "numpy", "scikit-learn", "rensa")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a stage starts from: its definition, the values of its parameters, and its dependencies' digests."""

    stage: StageDefinition
    params: Mapping[str, Any]
    dependencies: Mapping[str, Mapping[str, str]]


@contextmanager
def statement_of(name: str) -> Iterator[None]:
    """Write the statement of a stage whose other outputs the block writes, from what its inputs were before the block.

    Raises InputsChangedError, and writes nothing, when they are others after it.
    """
    stage = find_stage(name) if PIPELINE.is_file() else None
    if stage is None or stage.statement is None:
        yield
        return
    inputs = read_inputs(stage)
    yield
    _check_unchanged(inputs)
    write_json(stage.statement, make_statement(inputs))


def read_inputs(stage: StageDefinition) -> Inputs:
    """The stage's inputs as they are now."""
    params = read_params()
    return Inputs(stage, {key: _value(params, key) for key in stage.params}, _digests(stage.dependencies))


def _check_unchanged(inputs: Inputs) -> None:
    before, now = inputs, read_inputs(find_stage(inputs.stage.name))
    changed = [PIPELINE.as_posix()] if now.stage != before.stage else []
    changed += [f"{PARAMS}: {key}" for key in before.params if now.params.get(key) != before.params[key]]
    changed += [path for path in before.dependencies if now.dependencies.get(path) != before.dependencies[path]]
    if changed:
        raise InputsChangedError(
            f"{inputs.stage.name}: {', '.join(changed)} changed while it ran; its results are not kept: run again"
        )


def make_statement(inputs: Inputs) -> dict[str, Any]:
    """The statement of a stage whose outputs are as they are now."""
    stage, params = inputs.stage, inputs.params
    seeds = {key: value["seed"] for key, value in params.items() if isinstance(value, dict) and "seed" in value}
    outputs = [path for path in stage.outputs if Path(path) != stage.statement]
    return {
        "_type": STATEMENT,
        "subject": _described(_digests(outputs)),
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"stage": stage.name, "command": stage.command, "params": dict(params)},
                "internalParameters": {"seeds": seeds},
                "resolvedDependencies": [*_described(inputs.dependencies), *_code(), *_packages()],
            },
            "runDetails": {"builder": {"id": "urn:iterit", "version": {"iterit": _version("iterit")}}},
        },
    }


def write_bundle() -> None:
    """Write all statements of the workspace to one file, one per line, for git to hold."""
    statements = [read_json(file) for file in sorted(Path(FOLDER).glob("*.json"))]
    with atomic_write(Path(BUNDLE)) as temporary:
        lines = (json.dumps(statement, ensure_ascii=False) + "\n" for statement in statements)
        temporary.write_text("".join(lines), encoding="utf-8")


def read_bundle(text: str) -> dict[str, str]:
    """Path of each statement -> its text, to the byte, from the text of a bundle."""
    statements = map(json.loads, text.splitlines())
    return {f"{FOLDER}/{stage_of(statement)}.json": json_text(statement) for statement in statements}


def stage_of(statement: Mapping[str, Any]) -> str:
    """The stage that a statement describes. Raises KeyError or TypeError for what is no statement."""
    stage: str = statement["predicate"]["buildDefinition"]["externalParameters"]["stage"]
    return stage


def digest_in(described: Mapping[str, Any]) -> str | None:
    """The digest by which this project knows a subject or dependency; None where it has none, as a package.

    A statement from before version 0.2 has a folder's digest under `sha256`.
    """
    digests: Mapping[str, str] = described.get("digest", {})
    return digests.get("iteritFolder") or digests.get("sha256")


def read_subjects(stage: str) -> dict[str, str]:
    """Path -> digest of the outputs that a stage's statement in the workspace describes; empty where it has none."""
    file = Path(FOLDER) / f"{stage}.json"
    if not file.is_file():
        return {}
    return {subject["name"]: digest_in(subject) or "" for subject in read_json(file)["subject"]}


def _digests(paths: Iterable[str]) -> dict[str, dict[str, str]]:
    return {path: digest_set(Path(path), cached_file_digest) for path in sorted(paths)}


def _described(digests: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    return [{"name": path, "digest": dict(digest)} for path, digest in digests.items()]


def _code() -> list[dict[str, Any]]:
    """The commit that last changed the code, where this is a git repository; commits of results alone do not count."""
    log = subprocess.run(["git", "log", "-1", "--format=%H", "--", *CODE], capture_output=True, text=True, check=False)
    if log.returncode or not log.stdout.strip():
        return []
    changed = subprocess.run(["git", "status", "--porcelain", "--", *CODE], capture_output=True, text=True, check=True)
    return [
        {
            "name": "code",
            "uri": "git+file:.",
            "digest": {"gitCommit": log.stdout.strip()},
            "annotations": {"clean": not changed.stdout.strip()},
        }
    ]


def _packages() -> list[dict[str, Any]]:
    return [{"name": name, "uri": f"pkg:pypi/{name}@{_version(name)}"} for name in PACKAGES]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _value(params: Any, key: str) -> Any:
    """The value at a dotted key, as JSON has it."""
    for part in key.split("."):
        params = params[part]
    return json.loads(json.dumps(params))


def main() -> None:
    """Write the statements of the stages that the command line names, for a project that was made by other means."""
    import sys

    for name in sys.argv[1:]:
        with statement_of(name):
            pass


if __name__ == "__main__":
    main()
