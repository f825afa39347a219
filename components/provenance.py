"""What each stage made of what: an in-toto attestation statement a stage, with the SLSA provenance predicate.

`provenance/<stage>.json` is written as the stage's last output, and DVC keeps it as it keeps the others. A sealed run
puts all of them into git besides: `provenance.intoto.jsonl`, in-toto's bundle, has one on each line. in-toto
(https://in-toto.io/Statement/v1) and SLSA (https://slsa.dev/provenance/v1) are what build systems sign and verifiers
read; here a checkpoint is what is built.

    subject                         outputs: path in the project, SHA-256
    buildDefinition
      externalParameters            stage, command, and the stage's parameters
      internalParameters            seed, where there is one
      resolvedDependencies          inputs and code files: path, SHA-256; the code's git commit, and whether its files
                                    were as committed; the packages that matter
    runDetails.builder              this package

A folder's SHA-256 is components.digests.folder_digest. There is no time, host or run id in it: the same inputs give
the same statement. What a stage reads and writes is read from dvc.yaml, the one place that says so; a stage that is
run by hand outside such a project writes none.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from components import tables
from components.digests import file_digest, folder_digest, known_digest
from components.settings import read_params

PIPELINE = Path("dvc.yaml")
FOLDER = "provenance"
BUNDLE = "provenance.intoto.jsonl"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:iterit:stage:v1"
CODE = ("components", "flows", "conf", "dvc.yaml", "pyproject.toml", "requirements.lock")
PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "peft", "tokenizers", "numpy", "scikit-learn", "rensa")


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage as dvc.yaml has it, with its key filled in."""

    name: str
    command: str
    dependencies: list[str]
    outputs: list[str]
    params: list[str]

    @property
    def statement(self) -> Path | None:
        """Where its statement goes."""
        return next((Path(path) for path in self.outputs if path.startswith(f"{FOLDER}/")), None)


def find_stage(name: str) -> Stage:
    """Raises KeyError for a stage that dvc.yaml does not have."""
    stages = YAML(typ="safe").load(PIPELINE.read_text(encoding="utf-8"))["stages"]
    group, _, key = name.partition("@")
    found, item = stages[group], {}
    if "foreach" in found:
        values: Any = read_params()
        for part in found["foreach"].strip("${}").split("."):
            values = values[part]
        found, item = found["do"], values[key]

    def filled(text: str) -> str:
        for field, value in item.items():
            text = text.replace(f"${{item.{field}}}", str(value))
        return text.replace("${key}", key)

    def paths(kind: str) -> list[str]:
        return [filled(one if isinstance(one, str) else next(iter(one))) for one in found.get(kind, ())]

    return Stage(
        name,
        filled(" ".join(found["cmd"].split())),
        paths("deps"),
        paths("outs") + paths("metrics"),
        [filled(one) for one in found.get("params", ())],
    )


def write_statement(name: str) -> None:
    """Describe the stage that has just written all its other outputs."""
    if not PIPELINE.is_file():
        return
    stage = find_stage(name)
    if stage.statement is None:
        return
    tables.write_json(stage.statement, make_statement(stage))


def make_statement(stage: Stage) -> dict[str, Any]:
    params = read_params()
    external = {key: _value(params, key) for key in stage.params}
    seeds = {key: value["seed"] for key, value in external.items() if isinstance(value, dict) and "seed" in value}
    outputs = [path for path in stage.outputs if Path(path) != stage.statement]
    return {
        "_type": STATEMENT,
        "subject": _described(outputs),
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"stage": stage.name, "command": stage.command, "params": external},
                "internalParameters": {"seeds": seeds},
                "resolvedDependencies": [*_described(stage.dependencies), *_code(), *_packages()],
            },
            "runDetails": {"builder": {"id": "urn:iterit", "version": {"iterit": _version("iterit")}}},
        },
    }


def write_bundle() -> None:
    """All statements of the workspace in one file, one on each line, for git to hold."""
    statements = [tables.read_json(file) for file in sorted(Path(FOLDER).glob("*.json"))]
    with tables.written_beside(Path(BUNDLE)) as beside:
        beside.write_text(
            "".join(json.dumps(statement, ensure_ascii=False) + "\n" for statement in statements), encoding="utf-8"
        )


def read_bundle(text: str) -> dict[str, str]:
    """Path of each statement -> its text, to the byte, from the text of a bundle."""
    statements = map(json.loads, text.splitlines())
    return {f"{FOLDER}/{stage_of(statement)}.json": tables.json_text(statement) for statement in statements}


def stage_of(statement: dict[str, Any]) -> str:
    """The stage that a statement is of. Raises KeyError or TypeError for what is none."""
    stage: str = statement["predicate"]["buildDefinition"]["externalParameters"]["stage"]
    return stage


def read_subjects(stage: str) -> dict[str, str]:
    """Path -> SHA-256 of what a stage's statement in the workspace is about; empty where it has none yet."""
    file = Path(FOLDER) / f"{stage}.json"
    if not file.is_file():
        return {}
    return {one["name"]: one["digest"]["sha256"] for one in tables.read_json(file)["subject"]}


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of a folder by its files."""
    return folder_digest(path) if path.is_dir() else file_digest(path)


def _described(paths: Iterable[str]) -> list[dict[str, Any]]:
    return [{"name": path, "digest": {"sha256": known_digest(Path(path))}} for path in sorted(paths)]


def _code() -> list[dict[str, Any]]:
    """The commit that last changed the code, where this is a git repository; commits of results alone do not count."""
    done = subprocess.run(["git", "log", "-1", "--format=%H", "--", *CODE], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        return []
    changed = subprocess.run(["git", "status", "--porcelain", "--", *CODE], capture_output=True, text=True, check=True)
    return [
        {
            "name": "code",
            "uri": "git+file:.",
            "digest": {"gitCommit": done.stdout.strip()},
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
    for part in key.split("."):
        params = params[part]
    return json.loads(json.dumps(params))


def main() -> None:
    """Write the statements of the stages that the command line names: for a project made by other means."""
    import sys

    for name in sys.argv[1:]:
        write_statement(name)


if __name__ == "__main__":
    main()
