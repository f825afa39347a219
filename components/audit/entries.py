"""Compares what a stage is said to be made of: its statement, its entry in dvc.lock, dvc.yaml and params.yaml.

The statement is the record; its own MD5 is in dvc.lock. Bytes are compared elsewhere (verify.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from components.audit.check import Check, differences
from components.audit.find import Checkpoint
from components.audit.snapshots import WORKSPACE, Snapshot
from components.core.errors import UserError, first_line
from components.core.files import flatten
from components.core.params import read_params
from components.core.paths import LOCK, PARAMS, PIPELINE
from components.provenance.lockfile import StageEntry, file_md5, text_md5
from components.provenance.pipeline import FOLDER
from components.provenance.recorded import RecordedStage
from components.provenance.statements import param_value

ITERATED = ("score", "select", "finetune", "evaluate", "benchmark")
AFTER_ALL = ("contamination", "report", "register")  # of the checkpoint of the last iteration
NOT_NEEDED = ("evaluate_base", "evaluate", "benchmark", *AFTER_ALL)  # to make a checkpoint: they may not have run yet


@dataclass(frozen=True, slots=True)
class Definition:
    """A stage of dvc.yaml as DVC resolves it with params.yaml; `params` are dotted keys."""

    command: str
    dependencies: list[str]
    outputs: list[str]
    params: list[str]


def read_definitions() -> dict[str, Definition]:
    """Stage -> definition, of all stages that dvc.yaml has with params.yaml as it is. Raises UserError."""
    from dvc.dependency import ParamsDependency
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    read_params()  # its errors name the line, as do those of dvc.lock
    assert Snapshot(WORKSPACE).lock is not None
    try:
        with Repo(".") as repo:
            stages = repo.stage.load_all(PIPELINE.as_posix())
            return {
                stage.name: Definition(
                    _joined(stage.cmd),
                    [one.def_path for one in stage.deps if not isinstance(one, ParamsDependency)],
                    [one.def_path for one in stage.outs],
                    [key for one in stage.params for key in one.params],
                )
                for stage in stages
            }
    except DvcException as error:
        place = LOCK if LOCK.name in str(error) else PIPELINE
        raise UserError(f"{place}: {first_line(error)}") from error


def chain_stages(checkpoint: Checkpoint, definitions: Mapping[str, Definition]) -> list[str]:
    """The stages behind a checkpoint, in the order of dvc.lock, and those that judge it, if they have run."""
    last = 0 if checkpoint.iteration == "base" else int(checkpoint.iteration)
    lock = checkpoint.snapshot.lock
    trained = [int(name.partition("@")[2]) for name in definitions or lock if name.startswith("finetune@")]

    def belongs(name: str) -> bool:
        group, _, key = name.partition("@")
        if group in ITERATED:
            return key == "base" or (key.isdecimal() and int(key) <= last)
        if group in AFTER_ALL and last != max(trained, default=0):
            return False
        return not definitions or name in definitions

    needed = ["base_model", "ingest", "dedupe"]
    needed += [f"{name}@{key}" for key in checkpoint.iterations for name in ("score", "select", "finetune")]
    for name, definition in definitions.items():
        ran = any(Path(path).exists() for path in definition.outputs)
        if belongs(name) and (ran or name.partition("@")[0] not in NOT_NEEDED):
            needed.append(name)
    return list(dict.fromkeys([*filter(belongs, lock), *needed]))


def verify_statements(definitions: Mapping[str, Definition], *, required: bool) -> Iterator[Check]:
    """Compare the workspace's statements with dvc.lock, by MD5, before anything that they record is relied on.

    A statement that dvc.lock names must be there, unless dvc.yaml has its stage no longer, or, where it is not
    `required`, the workspace has no statement at all. A statement of dvc.yaml's stages must be named by dvc.lock.
    """
    snapshot = Snapshot(WORKSPACE)
    complete = required or any(Path(FOLDER).glob("*.json"))
    for path, recorded in sorted(snapshot.hashes.items()):
        if path.startswith(f"{FOLDER}/"):
            if Path(path).is_file():
                yield Check(path, recorded, file_md5(Path(path)))
            elif complete and Path(path).stem in definitions:
                yield Check(path, recorded, None)
    for stage in definitions:
        path = f"{FOLDER}/{stage}.json"
        if stage not in snapshot.lock and Path(path).is_file():
            yield Check(f"{LOCK}: {stage}", f"in {path}", None)


def verify_entry(snapshot: Snapshot, name: str, definition: Definition | None) -> Iterator[Check]:
    """Compare a stage's statement with dvc.lock, and both with its definition, where that is given."""
    path = f"{FOLDER}/{name}.json"
    text = snapshot.statement_texts.get(path)
    md5 = None if text is None else text_md5(text.encode())
    yield Check(path, snapshot.hashes.get(path, "nothing in dvc.lock"), md5)
    entry, stage = snapshot.lock.get(name), snapshot.stage(name)
    if entry is None:
        yield Check(f"{LOCK}: {name}", f"in {path}", None)
        return
    wrong = [*_compare_lock(name, stage, entry)]
    if definition is not None:
        wrong += _compare_definition(name, stage, entry, definition)
    yield from wrong or [Check(f"{LOCK}: {name}", "agrees", "agrees")]


def _compare_lock(name: str, stage: RecordedStage, entry: StageEntry) -> Iterator[Check]:
    """dvc.lock against the statement."""
    command = _joined(entry.command)
    if not command.endswith(stage.command):
        yield Check(f"{LOCK}: {name}: cmd", stage.command, command)
    yield from differences(f"{LOCK}: {name}: params ", flatten(stage.params), entry.params)
    yield from _compare_lists(f"{LOCK}: {name}: deps ", stage.inputs, entry.dependencies)
    yield from _compare_lists(f"{LOCK}: {name}: outs ", [*stage.outputs, f"{FOLDER}/{name}.json"], entry.outputs)


def _compare_definition(name: str, stage: RecordedStage, entry: StageEntry, definition: Definition) -> Iterator[Check]:
    """dvc.yaml and params.yaml against dvc.lock and the statement."""
    command = _joined(entry.command)
    if command != definition.command:
        yield Check(f"{PIPELINE}: {name}: cmd", command, definition.command)
    yield from _compare_lists(f"{PIPELINE}: {name}: deps ", entry.dependencies, definition.dependencies)
    yield from _compare_lists(f"{PIPELINE}: {name}: outs ", entry.outputs, definition.outputs)
    yield from _compare_lists(f"{PIPELINE}: {name}: params ", stage.params, definition.params)
    params = read_params()
    now = flatten({key: param_value(params, key) for key in definition.params})
    for check in differences("", flatten(stage.params), now):
        if check.computed is None and check.artifact.startswith("iterations."):
            continue  # an iteration that params.yaml no longer has
        yield Check(f"{PARAMS}: {check.artifact} as {name} read it", check.recorded, check.computed)


def _compare_lists(artifact: str, recorded: Iterable[str], found: Iterable[str]) -> Iterator[Check]:
    return differences(artifact, dict.fromkeys(recorded, "listed"), dict.fromkeys(found, "listed"))


def _joined(command: str) -> str:
    return " ".join(command.split())
