"""Where the result comes from, and how to make it again: commands, digests, parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.core.files import read_json
from components.core.paths import LOCK
from components.pages.parts import Code, Fact, Facts, Part, Text, visible
from components.pages.run.workspace import METRICS, POOL, Run, chosen_iteration
from components.provenance.digests import file_digest
from components.provenance.lockfile import StageEntry, read_lock
from components.provenance.pipeline import FOLDER
from components.provenance.recorded import CodeVersion, parse_statement


def again(run: Run) -> Iterator[Part]:
    """The commands, the digests and the parameters."""
    chosen = chosen_iteration(run)
    code = _code_version(chosen)
    start = []
    if run.tag:
        start = [f"git checkout {run.tag}"]
    elif code:
        start = [f"git checkout {code.commit}"]
    yield Code(
        "\n".join(
            [
                *start,
                "make setup && source .venv/bin/activate   # the environment of requirements.lock",
                "dvc repro                                 # makes every file again; dvc pull fetches them instead",
                "iterit audit verify                       # compares every digest along the chain",
                "iterit report                             # this page",
            ]
        ),
        title="To make it again",
    )
    if code and not code.clean:
        yield Text(
            "The code had uncommitted changes when the model was trained: the commit alone does not make it again."
        )
    yield Facts(list(_digests(run, chosen)), code=True)
    if run.registered:
        yield Facts(
            [
                Fact("registered version", f"models:/{run.registered.model}/{run.registered.version}"),
                Fact("MLflow run", run.registered.run_id),
            ],
            code=True,
        )
    lock = _lock_of(run)
    yield Code(_parameters(lock), title="Parameters, as the stages read them (dvc.lock)")


def _digests(run: Run, chosen: str) -> Iterator[Fact]:
    for key, name in (("base", "base model"), (chosen, f"checkpoint, models/{chosen}")):
        digest = read_json(METRICS / "evaluate" / f"{key}.json").get("checkpoint")
        yield Fact(name, str(digest), "SHA-256 of the folder's files")
    if LOCK.is_file():
        yield Fact(LOCK.as_posix(), file_digest(LOCK), "SHA-256")
    lock = _lock_of(run)
    hashes = {path: md5 for entry in lock.values() for path, md5 in entry.outputs.items()}
    for path in (POOL.as_posix(), "data/holdout.parquet"):
        if path in hashes:
            yield Fact(path, hashes[path], "MD5, as DVC has it")


def _lock_of(run: Run) -> dict[str, StageEntry]:
    """The stages of dvc.lock that params.yaml still has. Raises UserError when there is no dvc.lock."""
    kept = {}
    for stage, entry in read_lock().items():
        name, _, key = stage.partition("@")
        keys = run.settings.ingest.files if name == "manifest" else run.settings.iterations
        if not key or key in keys:
            kept[stage] = entry
    return kept


def _parameters(lock: Mapping[str, StageEntry]) -> str:
    """A line for each dotted key; strings in quotes, so that nothing is taken for a number."""
    values: dict[str, Any] = {}
    for entry in lock.values():
        values |= entry.params
    width = max(map(len, values), default=0)
    return "\n".join(
        f"{key:{width}}  {visible(json.dumps(value, ensure_ascii=False))}" for key, value in sorted(values.items())
    )


def _code_version(chosen: str) -> CodeVersion | None:
    """The commit of the code that trained the checkpoint; None where its statement is not here or does not say."""
    file = Path(FOLDER) / f"finetune@{chosen}.json"
    return parse_statement(read_json(file)).code if file.is_file() else None
