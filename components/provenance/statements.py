"""Writes provenance: one in-toto statement per stage, with the SLSA predicate, of what was made from what.

`provenance/STAGE.json` is the stage's last output, versioned by DVC like the others. A sealed run also commits all of
them to git in one file, in-toto's bundle `provenance.intoto.jsonl`, one per line. Build systems sign statements of
in-toto (https://in-toto.io/Statement/v1) with SLSA's predicate (https://slsa.dev/provenance/v1), and verifiers read
them; here a checkpoint is what is built.

    subject                         outputs: path in the project, digests
    buildDefinition
      externalParameters            stage, command, and the stage's parameters
      internalParameters            seed, where there is one
      resolvedDependencies          inputs and code files: path in the project, digests; git commit of the code, and
                                    whether its files were as committed; versions of the packages that shape the results
    runDetails.builder              this package

A file's digest is its SHA-256; a folder has in-toto's dirHash and this project's iteritFolder (digests.py). A statement
holds no time, host or run id: the same inputs give the same statement. A stage that is run by hand, outside a project
with a dvc.yaml, writes none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from components.core.errors import InputsChangedError, UserError
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
PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "peft", "tokenizers", "numpy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a stage starts from: its definition, the values of its parameters, and the digests of its dependencies.

    A parameter that params.yaml lacks is None; a dependency that is not there has no digests. The stage itself reports
    both, in terms of what it needs.
    """

    stage: StageDefinition
    params: Mapping[str, Any]
    dependencies: Mapping[str, Mapping[str, str]]


@contextmanager
def statement_of(name: str) -> Iterator[None]:
    """Write the statement of a stage whose other outputs the block writes, with the inputs as they were before it.

    Raises InputsChangedError, and writes nothing, when the inputs after the block differ from those before it.
    """
    stage = _require_stage(name) if PIPELINE.is_file() else None
    if stage is None or stage.statement is None:
        yield
        return
    inputs = read_inputs(stage)
    yield
    changed = _changes(inputs, read_inputs(_require_stage(name)))
    if changed:
        raise InputsChangedError(
            f"{name}: {', '.join(changed)} changed while the stage ran; its results are not recorded, run it again"
        )
    write_json(stage.statement, make_statement(inputs))


def read_inputs(stage: StageDefinition) -> Inputs:
    """The stage's inputs as they are now."""
    params = read_params()
    present = [path for path in stage.dependencies if Path(path).exists()]
    return Inputs(stage, {key: param_value(params, key) for key in stage.params}, _digests(present))


def _require_stage(name: str) -> StageDefinition:
    try:
        return find_stage(name)
    except KeyError as error:
        raise UserError(f"{PIPELINE}: stage {name}: no {error} in {PIPELINE} or {PARAMS}") from None


def _changes(before: Inputs, after: Inputs) -> list[str]:
    """Files, and keys of params.yaml, that differ."""
    params = sorted({*before.params, *after.params})
    paths = sorted({*before.dependencies, *after.dependencies})
    return [
        *([PIPELINE.as_posix()] if before.stage != after.stage else []),
        *(f"{PARAMS}: {key}" for key in params if before.params.get(key) != after.params.get(key)),
        *(path for path in paths if before.dependencies.get(path) != after.dependencies.get(path)),
    ]


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
    """Write all statements of the workspace to one file, one per line, for git to keep."""
    with atomic_write(Path(BUNDLE)) as temporary:
        temporary.write_text(bundle_text(), encoding="utf-8")


def bundle_text() -> str:
    """All statements of the workspace, one per line."""
    statements = (read_json(file) for file in sorted(Path(FOLDER).glob("*.json")))
    return "".join(json.dumps(statement, ensure_ascii=False) + "\n" for statement in statements)


def read_bundle(text: str) -> dict[str, str]:
    """Path of each statement -> its text, byte for byte as its stage wrote it, from the text of a bundle."""
    statements = map(json.loads, text.splitlines())
    return {f"{FOLDER}/{stage_of(statement)}.json": json_text(statement) for statement in statements}


def stage_of(statement: Mapping[str, Any]) -> str:
    """DVC's name of the stage that a statement describes. Raises KeyError or TypeError for other JSON."""
    stage: str = statement["predicate"]["buildDefinition"]["externalParameters"]["stage"]
    return stage


def digest_in(described: Mapping[str, Any]) -> str | None:
    """The digest by which this project knows a subject or a dependency; None where there is none, as for a package.

    Older statements have folder_digest of a folder under `sha256`.
    """
    digests: Mapping[str, str] = described.get("digest", {})
    return digests.get("iteritFolder") or digests.get("sha256")


def read_subjects(stage: str) -> dict[str, str]:
    """Path -> digest of the outputs that a stage's statement in the workspace names; empty without a statement."""
    file = Path(FOLDER) / f"{stage}.json"
    if not file.is_file():
        return {}
    return {subject["name"]: digest_in(subject) or "" for subject in read_json(file)["subject"]}


def _digests(paths: Iterable[str]) -> dict[str, dict[str, str]]:
    return {path: digest_set(Path(path), cached_file_digest) for path in sorted(paths)}


def _described(digests: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    return [{"name": path, "digest": dict(digest)} for path, digest in digests.items()]


def _code() -> list[dict[str, Any]]:
    """The last commit that changed the code, not one of results alone; empty outside a git repository."""
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


def param_value(params: Any, key: str) -> Any:
    """The value at a dotted key, as JSON represents it; None where params.yaml lacks the key."""
    for part in key.split("."):
        params = params.get(part) if isinstance(params, dict) else None
    return json.loads(json.dumps(params))


def main() -> None:
    """Write the statements of the stages named on the command line, for a project whose stages did not run."""
    for name in sys.argv[1:]:
        with statement_of(name):
            pass


if __name__ == "__main__":
    main()
