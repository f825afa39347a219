"""Which data trained which checkpoint, and whether anything was swapped since: what `iterit audit` answers.

A checkpoint is known by the digest of its folder. Its chain goes from the base model over every iteration to it; the
statements of one snapshot (components/history.py) tell it, and their digests tie it together: what an iteration read
is what the one before wrote.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.errors import UserError
from components.history import WORKSPACE, Snapshot, git, open_index, snapshots
from components.provenance import FOLDER, digest_of
from components.records import read_records

SHORTEST_PREFIX = 8  # hex digits of a digest
UNKNOWN = "not known: its selection is neither here, in DVC's cache, nor on its remote"
SHOWN = 10  # records of each iteration, without --records
LINKED = {  # what each stage must have read as another stage wrote it
    "score": ("data/pool.parquet", "data/iterations/{parent}/candidates.parquet", "models/{parent}"),
    "select": ("data/pool.parquet", "data/iterations/{key}/scores.parquet"),
    "finetune": ("data/iterations/{key}/subset.parquet", "models/{parent}", "state/{parent}"),
    "evaluate": ("data/holdout.parquet", "models/{key}"),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a checkpoint is told of: the newest snapshot that has it, and its iteration ("base" for the base model)."""

    digest: str
    snapshot: Snapshot
    iteration: str


# --- finding ----------------------------------------------------------------------------------------------------------


def find_checkpoint(reference: str) -> Checkpoint:
    """`reference`: a folder, a digest or its first 8 digits or more, an MLflow run id, models:/NAME/VERSION or
    models:/NAME@ALIAS. Raises UserError when nothing in the history is that checkpoint.
    """
    digest = _digest_of_reference(reference)
    found: dict[str, Checkpoint] = {}
    for snapshot in snapshots():
        for iteration in ("base", *snapshot.iterations):
            made = snapshot.made(f"models/{iteration}")
            if made is not None and made.startswith(digest):
                found.setdefault(made, Checkpoint(made, snapshot, iteration))
        if len(digest) == 64 and found:
            break
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UserError(f"{reference}: {len(found)} checkpoints begin so: {', '.join(sorted(found))}")
    raise UserError(f"{reference}: no checkpoint of this project's history has the digest {digest}")


def _digest_of_reference(reference: str) -> str:
    if Path(reference).is_dir():
        return digest_of(Path(reference))
    if reference.startswith("models:/") or _is_run_id(reference):
        from components import tracking

        return tracking.find_checkpoint(reference)
    if len(reference) >= SHORTEST_PREFIX and set(reference) <= set("0123456789abcdef"):
        return reference
    raise UserError(
        f"{reference}: neither a folder, {SHORTEST_PREFIX} or more hex digits of a checkpoint's digest, an MLflow run "
        "id, nor models:/NAME/VERSION or models:/NAME@ALIAS"
    )


def _is_run_id(reference: str) -> bool:
    return len(reference) == 32 and set(reference) <= set("0123456789abcdef")


def last_checkpoint() -> Checkpoint:
    """That of the workspace's last iteration."""
    snapshot = Snapshot(WORKSPACE)
    if not snapshot.iterations:
        raise UserError(f"{FOLDER}: no statement of a fine-tuning; `iterit run` or `dvc repro` writes them")
    key = snapshot.iterations[-1]
    return Checkpoint(str(snapshot.made(f"models/{key}")), snapshot, key)


# --- iterit audit checkpoint ------------------------------------------------------------------------------------------


def describe(checkpoint: Checkpoint, *, every_record: bool = False) -> dict[str, Any]:
    """The chain from the base model to the checkpoint, as plain data."""
    snapshot = checkpoint.snapshot
    last = 0 if checkpoint.iteration == "base" else int(checkpoint.iteration)
    return {
        "checkpoint": checkpoint.digest,
        "told_by": snapshot.ref,
        "sealed": sealed(checkpoint.digest),
        "base_model": {
            "digest": snapshot.made("models/base"),
            "params": _definition(snapshot, "base_model")["externalParameters"]["params"],
        },
        "iterations": [
            _iteration(snapshot, key, every_record=every_record) for key in snapshot.iterations if int(key) <= last
        ],
    }


def sealed(digest: str) -> list[dict[str, Any]]:
    """The tags of the sealed runs that a checkpoint was made, kept or registered in, the earliest first.

    Of each: the tag, MLflow's run, Prefect's flow run, and whether it was this checkpoint that was registered.
    """
    query = "select ref from checkpoint where digest = ? and ref != ? order by place"
    told_by = {ref: place for place, (ref,) in enumerate(open_index().execute(query, [digest, WORKSPACE]))}
    try:
        listed = git("tag", "--list", "--format=%(refname:short) %(*objectname)", "iterit/*").splitlines()
    except subprocess.CalledProcessError:
        return []
    tags = [line.split(" ") for line in listed]
    found = []
    for _, name in sorted((told_by[commit], name) for name, commit in tags if commit in told_by):
        try:
            message = json.loads(git("tag", "--list", "--format=%(contents)", name))
            found.append({"tag": name, **message, "registered": message["checkpoint"] == digest})
        except (KeyError, TypeError, json.JSONDecodeError):
            continue  # somebody else's tag
    return found


def _definition(snapshot: Snapshot, stage: str) -> dict[str, Any]:
    try:
        definition: dict[str, Any] = snapshot.statements[stage]["predicate"]["buildDefinition"]
    except KeyError:
        raise UserError(
            f"{FOLDER}/{stage}.json ({snapshot.ref}): no statement; `dvc repro {stage}` writes it"
        ) from None
    return definition


def _iteration(snapshot: Snapshot, key: str, *, every_record: bool) -> dict[str, Any]:
    definition = _definition(snapshot, f"finetune@{key}")
    materials = definition["resolvedDependencies"]
    code = next((one for one in materials if one["name"] == "code"), None)
    params = {**_definition(snapshot, f"select@{key}")["externalParameters"]["params"]}
    params |= definition["externalParameters"]["params"]
    evaluated = f"metrics/evaluate/{key}.json"
    picks = _picks(snapshot, key)
    return {
        "iteration": key,
        "checkpoint": snapshot.made(f"models/{key}"),
        "subset": snapshot.made(f"data/iterations/{key}/subset.parquet"),
        "candidates": _input(snapshot, f"score@{key}", "candidates.parquet"),
        "pool": snapshot.made("data/pool.parquet"),
        "records": len(picks),
        "sources": {source: sum(one["source"] == source for one in picks) for source in _ordered(picks, "source")},
        "picks": picks if every_record else picks[:SHOWN],
        "params": params,
        "seeds": definition["internalParameters"]["seeds"],
        "code": {"commit": code["digest"]["gitCommit"], "clean": code["annotations"]["clean"]} if code else None,
        "packages": [
            one["uri"].removeprefix("pkg:pypi/") for one in materials if "uri" in one and "pkg:" in one["uri"]
        ],
        "metrics": json.loads(snapshot.read(evaluated)) if snapshot.has(evaluated) else None,
    }


def _ordered(rows: Sequence[dict[str, Any]], name: str) -> list[str]:
    return sorted({row[name] for row in rows})


def _input(snapshot: Snapshot, stage: str, ending: str) -> str | None:
    found = _definition(snapshot, stage)["resolvedDependencies"]
    return next((one["digest"]["sha256"] for one in found if one["name"].endswith(ending)), None)


def _picks(snapshot: Snapshot, key: str) -> list[dict[str, Any]]:
    """The records that trained an iteration: rank, id, source, and complexity, diversity and score at the time."""
    selection = _table(snapshot, f"data/iterations/{key}/selection.parquet")
    subset = _table(snapshot, f"data/iterations/{key}/subset.parquet")
    source_of = dict(
        zip(
            *(pq.read_table(subset, columns=["id", "source"])[name].to_pylist() for name in ("id", "source")),
            strict=True,
        )
    )
    table = pq.read_table(selection)
    rows = table.filter(pc.equal(table["status"], "selected")).sort_by("rank").to_pylist()
    names = ("rank", "id", "complexity", "diversity", "score")
    return [{**{name: row[name] for name in names}, "source": source_of.get(row["id"], "?")} for row in rows]


def _table(snapshot: Snapshot, path: str) -> Path:
    file = snapshot.find(path)
    if file is None:
        raise UserError(
            f"{path} ({snapshot.ref}): neither here, in DVC's cache, nor on its remote; `dvc pull` may help"
        )
    return file


# --- iterit audit record ----------------------------------------------------------------------------------------------


def trace(record: str) -> dict[str, Any]:
    """Where a record was in the whole history: the checkpoints that it trained, and why it did not train the others.

    A checkpoint counts as trained by a record also when an iteration before it in its chain was.
    """
    index = open_index()
    entries = {
        row[0]: row[1:]
        for row in index.execute(
            "select source, status, rank, complexity, diversity, score, other from entry where record = ?",
            [bytes.fromhex(record)],
        )
    }
    affected: dict[str, dict[str, Any]] = {}
    clean: list[tuple[int, int, str, str]] = []
    reasons: list[dict[str, Any]] = []
    tainted: dict[str, bool] = {}
    query = """
        select digest, ref, iteration, place, selection, duplicates, holdout, rejected from checkpoint
        order by place, cast(iteration as integer)
    """
    for digest, ref, iteration, place, *sources in index.execute(query):
        found = next((entries[source] for source in sources if source in entries), None)
        used = found is not None and found[0] == "selected"
        tainted[ref] = tainted.get(ref, False) or used
        told = {"checkpoint": digest, "iteration": iteration, "told_by": ref}
        if used and found:
            told |= dict(zip(("rank", "complexity", "diversity", "score"), found[1:5], strict=True))
        unknown = sources[0] is None  # its selection table is nowhere: nobody can say that it is clean
        if tainted[ref]:
            affected.setdefault(digest, {**told, "directly": used})
        elif not unknown:
            clean.append((place, int(iteration), digest, ref))
        if not used:
            reasons.append({**told, "why": UNKNOWN if unknown else _why(found)})
    last_clean = next((one for one in reversed(clean) if one[2] not in affected), None)
    return {
        "record": record,
        "trained": list(affected.values()),
        "not_used": [
            one for one in reasons if one["checkpoint"] not in affected or not affected[one["checkpoint"]]["directly"]
        ],
        "last_clean": {"checkpoint": last_clean[2], "iteration": str(last_clean[1]), "told_by": last_clean[3]}
        if last_clean
        else None,
        "lost": [ref for (ref,) in index.execute("select ref from snapshot where lost")],
    }


def _why(entry: tuple[Any, ...] | None) -> str:
    if entry is None:
        return "not in that run's sources, or no conversation could be made of it"
    status, *_, other = entry
    if status == "duplicate":
        row = json.loads(other)
        of = f" of {row['kept_id']}" if row["kept_id"] else ""
        return f"duplicate ({row['kind']}){of}, similarity {row['similarity']}"
    return "in the holdout" if status == "holdout" else f"{status}: {other}"


def ids_with_text(text: str) -> list[str]:
    """Ids of the records, in any snapshot whose data are at hand, that have the text in a message."""
    found: dict[str, None] = {}
    read = set()
    for snapshot in snapshots():
        digest = snapshot.made("data/raw.parquet")
        file = None if digest in read else snapshot.find("data/raw.parquet")
        read.add(digest)
        for record in read_records(file) if file else ():
            if any(text in message.content for message in record.messages):
                found.setdefault(record.id)
    return list(found)


def ids_of_file(file: Path) -> list[str]:
    """Ids that the records in a JSON file have, in any shape that ingest recognizes."""
    from components.records import make_record
    from components.sources.shapes import BadRecordError, finish, recognize

    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON: {error}") from error
    found = []
    for number, row in enumerate(read if isinstance(read, list) else [read], 1):
        convert = recognize(row) if isinstance(row, dict) else None
        if convert is None:
            raise UserError(f"{file} record {number}: not of a known shape (Alpaca, Dolly, ShareGPT, OpenAI chat)")
        try:
            found.append(make_record("", finish(convert(row))[0]).id)
        except BadRecordError as error:
            raise UserError(f"{file} record {number}: {error.reason}") from error
    return found


# --- iterit audit verify ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: what was recorded for an artifact, and what it is."""

    artifact: str
    recorded: str
    found: str | None

    @property
    def holds(self) -> bool:
        return self.recorded == self.found

    def __str__(self) -> str:
        """One line; both digests where they differ."""
        if self.holds:
            return f"ok        {self.artifact}  {self.recorded[:16]}"
        return f"MISMATCH  {self.artifact}  recorded {self.recorded}, found {self.found or 'nothing'}"


def verify_statements() -> Iterator[Check]:
    """The workspace's statements are as dvc.lock has them, by MD5: to be known before one of them is believed.

    One that dvc.lock does not name was left by an iteration that params.yaml has no more.
    """
    for path, recorded in sorted(Snapshot(WORKSPACE).hashes.items()):
        if path.startswith(f"{FOLDER}/") and Path(path).is_file():
            yield Check(path, recorded, hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest())


def verify(checkpoint: Checkpoint) -> Iterator[Check]:
    """Compute every digest along the chain anew: of the statements, of what they tell of, and of what ties them."""
    snapshot = checkpoint.snapshot
    last = 0 if checkpoint.iteration == "base" else int(checkpoint.iteration)
    stages = ["base_model", "ingest", "dedupe"]
    stages += [f"{name}@{key}" for key in snapshot.iterations if int(key) <= last for name in LINKED]
    for stage in stages:
        yield from _verify_statement(snapshot, stage)
    for stage in stages:
        for subject in snapshot.statements[stage]["subject"]:
            yield _verify_artifact(snapshot, subject["name"], subject["digest"]["sha256"])
        yield from _verify_links(snapshot, stage)


def _verify_statement(snapshot: Snapshot, stage: str) -> Iterator[Check]:
    """A statement is as dvc.lock has it, by MD5."""
    path = f"{FOLDER}/{stage}.json"
    text = snapshot.statement_texts.get(path)
    md5 = None if text is None else hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    yield Check(path, snapshot.hashes.get(path, "nothing in dvc.lock"), md5)


def _verify_artifact(snapshot: Snapshot, path: str, recorded: str) -> Check:
    if snapshot.ref != WORKSPACE and snapshot.has(path):  # a small file that git holds
        return Check(path, recorded, hashlib.sha256(snapshot.read(path).encode()).hexdigest())
    file = snapshot.find(path)
    return Check(path, recorded, digest_of(file) if file else None)


def _verify_links(snapshot: Snapshot, stage: str) -> Iterator[Check]:
    name, _, key = stage.partition("@")
    parent = "base" if key in ("", "1") else str(int(key) - 1)
    read = {
        one["name"]: one["digest"]["sha256"]
        for one in _definition(snapshot, stage)["resolvedDependencies"]
        if "sha256" in one.get("digest", {})
    }
    for pattern in LINKED.get(name, ()):
        path = pattern.format(key=key, parent=parent)
        yield Check(f"{path} as {stage} read it", snapshot.made(path) or "nothing", read.get(path))


# --- iterit audit diff ------------------------------------------------------------------------------------------------


def compare(one: Checkpoint, other: Checkpoint) -> dict[str, Any]:
    """Which records, parameters, code and packages differ, and how the selections overlap iteration by iteration."""
    chains = [describe(checkpoint, every_record=True)["iterations"] for checkpoint in (one, other)]
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
