"""TODO"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.audit.index import open_index
from components.audit.snapshots import snapshots
from components.core.errors import UserError
from components.data.records import read_records

UNKNOWN = "not known: its selection is neither here, in DVC's cache, nor on its remote"


def trace_record(record: str) -> dict[str, Any]:
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
        told = {"checkpoint": digest, "iteration": iteration, "recorded_in": ref}
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
        "last_clean": {"checkpoint": last_clean[2], "iteration": str(last_clean[1]), "recorded_in": last_clean[3]}
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
        digest = snapshot.recorded_digest("data/raw.parquet")
        file = None if digest in read else snapshot.find("data/raw.parquet")
        read.add(digest)
        for record in read_records(file) if file else ():
            if any(text in message.content for message in record.messages):
                found.setdefault(record.id)
    return list(found)


def ids_of_file(file: Path) -> list[str]:
    """Ids that the records in a JSON file have, in any shape that ingest recognizes."""
    from components.data.records import make_record
    from components.data_sources.shapes import BadRecordError, finish, recognize

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
