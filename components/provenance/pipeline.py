"""Reads a stage from dvc.yaml, the one place that says what each stage reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from components.core.params import read_params
from components.core.paths import PIPELINE

FOLDER = "provenance"  # of the statements


@dataclass(frozen=True, slots=True)
class StageDefinition:
    """A stage of dvc.yaml with its key filled in; dependencies and outputs are paths, params are dotted keys."""

    name: str
    command: str
    dependencies: list[str]
    outputs: list[str]
    params: list[str]

    @property
    def statement(self) -> Path | None:
        """The output that is the stage's statement."""
        return next((Path(path) for path in self.outputs if path.startswith(f"{FOLDER}/")), None)


def find_stage(name: str) -> StageDefinition:
    """Raises KeyError for a stage that dvc.yaml does not have."""
    stages = YAML(typ="safe").load(PIPELINE.read_text(encoding="utf-8"))["stages"]
    group, _, key = name.partition("@")
    definition, item = stages[group], {}
    if "foreach" in definition:
        values: Any = read_params()
        for part in definition["foreach"].strip("${}").split("."):
            values = values[part]
        definition, item = definition["do"], values[key]

    def fill(text: str) -> str:
        for field, value in item.items():
            text = text.replace(f"${{item.{field}}}", str(value))
        return text.replace("${key}", key)

    def paths(kind: str) -> list[str]:
        return [fill(path if isinstance(path, str) else next(iter(path))) for path in definition.get(kind, ())]

    return StageDefinition(
        name,
        fill(" ".join(definition["cmd"].split())),
        paths("deps"),
        paths("outs") + paths("metrics"),
        [fill(key) for key in definition.get("params", ())],
    )


def stage_modules() -> Mapping[str, str]:
    """Name of each stage, without its key -> the module that its command starts: `score` -> `components.score`."""
    stages = YAML(typ="safe").load(PIPELINE.read_text(encoding="utf-8"))["stages"]
    commands = {name: definition.get("do", definition)["cmd"].split() for name, definition in stages.items()}
    return {name: words[words.index("-m") + 1] for name, words in commands.items()}
