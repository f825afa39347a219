"""Reads dvc.yaml, which alone defines what each stage runs, reads and writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from components.core.params import read_params
from components.core.paths import PIPELINE

CODE_FOLDERS = ("components/", "conf/")  # what a stage is made of, as DVC is told
FOLDER = "provenance"  # where the statements are


@dataclass(frozen=True, slots=True)
class StageDefinition:
    """A stage of dvc.yaml with its `foreach` key filled in: outputs include metrics, params are dotted keys."""

    name: str
    command: str
    dependencies: list[str]
    outputs: list[str]
    params: list[str]

    @property
    def statement(self) -> Path | None:
        """The output that holds the stage's statement; None where the stage writes none."""
        return next((Path(path) for path in self.outputs if path.startswith(f"{FOLDER}/")), None)


def find_stage(name: str) -> StageDefinition:
    """The stage that DVC calls `name`, such as `score@2`. Raises KeyError when dvc.yaml does not have it."""
    group, _, key = name.partition("@")
    definition: Any = _stages()[group]
    item: Mapping[str, Any] = {}
    if "foreach" in definition:
        values: Any = read_params()
        for part in definition["foreach"].strip("${}").split("."):
            values = values[part]
        # an item of a list is its own key
        definition, item = definition["do"], values[key] if isinstance(values, dict) else {}

    def fill(text: str) -> str:
        for field, value in item.items():
            text = text.replace(f"${{item.{field}}}", str(value))
        return text.replace("${key}", key).replace("${item}", key)

    def paths(kind: str) -> list[str]:
        return [fill(path if isinstance(path, str) else next(iter(path))) for path in definition.get(kind, ())]

    command = " ".join(definition["cmd"].split())
    return StageDefinition(
        name,
        fill(command[command.index("python") :]),  # without the check of names before it
        paths("deps"),
        paths("outs") + paths("metrics"),
        [fill(key) for key in definition.get("params", ())],
    )


def stage_modules() -> Mapping[str, str]:
    """Name of each stage without its key -> module that its command runs: `score` -> `components.score`."""
    commands = {name: definition.get("do", definition)["cmd"].split() for name, definition in _stages().items()}
    return {name: words[words.index("-m") + 1] for name, words in commands.items()}


def code_of(stages: Collection[str]) -> list[str]:
    """The code and configuration that stages of these names, without keys, depend on: paths in git."""
    definitions = [definition.get("do", definition) for name, definition in _stages().items() if name in stages]
    return sorted(
        {
            path
            for definition in definitions
            for path in definition["deps"]
            if path.startswith(CODE_FOLDERS) and "$" not in path
        }
    )


def output_places() -> list[str]:
    """The files and folders that stages write; of a path with a `foreach` key, the folder above it."""
    definitions = [definition.get("do", definition) for definition in _stages().values()]
    paths = [
        path if isinstance(path, str) else next(iter(path))
        for definition in definitions
        for kind in ("outs", "metrics", "plots")
        for path in definition.get(kind, ())
    ]
    return sorted({path.partition("${")[0].rpartition("/")[0] if "${" in path else path for path in paths})


def params_read() -> list[str]:
    """The dotted keys of params.yaml on which stages depend; those with a `foreach` key are left out."""
    definitions = [definition.get("do", definition) for definition in _stages().values()]
    return sorted({key for definition in definitions for key in definition.get("params", ()) if "${" not in key})


def _stages() -> Mapping[str, Any]:
    stages: Mapping[str, Any] = YAML(typ="safe").load(PIPELINE.read_text(encoding="utf-8"))["stages"]
    return stages
