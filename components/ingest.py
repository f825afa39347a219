"""Read every source into records; say of everything that is left out where it stood and why.

python -m components.ingest --manifests data/sources --records data/raw.parquet
    --rejected data/rejected.parquet --metrics metrics/ingest.json
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.core.errors import UserError
from components.core.files import write_json
from components.core.params import load_settings
from components.core.paths import PARAMS
from components.core.settings.ingest import Columns, DatasetSource, DocstringSource, FileSource, IngestSettings
from components.core.stage import stage
from components.data import tables
from components.data.records import Record, make_record, write_records
from components.data_sources import shapes
from components.data_sources.file_manifest import listed_files
from components.data_sources.item import Item, Items
from components.provenance.statements import statement_of


@dataclass
class Ingested:
    """Records in the order of their sources, and a row of tables.REJECTED for everything else."""

    records: list[Record] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # source -> read, kept, rejected, over_cap


def ingest(settings: IngestSettings, manifests: Path) -> Ingested:
    """Read all sources. Raises UserError when a source cannot be read, holds too much that is bad, or all are empty."""
    result = Ingested()
    for name, source in settings.sources.items():
        records, rejected = read_source(name, source, manifests, settings.max_characters)
        read = len(records) + len(rejected)
        _refuse_too_many(name, rejected, read, settings.max_rejected_share)
        kept, over = _cap(records, source.cap)
        result.records += kept
        result.rejected += rejected + over
        result.counts[name] = {"read": read, "kept": len(kept), "rejected": len(rejected), "over_cap": len(over)}
    if not result.records:
        raise UserError(
            f"{PARAMS}: ingest: no source holds a record ({', '.join(settings.sources)}); "
            "put a file into one of the folders under ingest.files, or name another source"
        )
    return result


def read_source(
    name: str, source: DocstringSource | DatasetSource | FileSource, manifests: Path, max_characters: int
) -> tuple[list[Record], list[dict[str, Any]]]:
    """The records of one source in its order, and the rows of tables.REJECTED for what makes none."""
    records: list[Record] = []
    rejected: list[dict[str, Any]] = []
    columns = None if isinstance(source, DocstringSource) else source.columns
    never_seen = {key for key in (columns.input, columns.system) if key} if columns else set()
    for part in _parts(name, source, manifests):
        before, unknown = len(records), None
        for item in part:
            never_seen -= set(item.value) if never_seen and isinstance(item.value, dict) else set()
            try:
                records.append(_convert(name, item, columns, max_characters))
            except shapes.BadRecordError as bad:
                rejected.append(_rejection(name, item.where, bad.record, bad.reason, bad.detail))
                if bad.reason == "unknown_shape":
                    unknown = unknown or f"{item.where}: {bad.detail}"
        if unknown and len(records) == before:  # not a record or two, but the whole file
            raise UserError(unknown)
    if records and never_seen:
        raise UserError(f"source {name}: no record has a column {min(never_seen)!r}, which the source's columns name")
    return records, rejected


def _parts(name: str, source: DocstringSource | DatasetSource | FileSource, manifests: Path) -> list[Items]:
    """The files of a source, or the source itself where it is one whole; each has its own shape."""
    if isinstance(source, DocstringSource):
        from components.data_sources.docstrings import read_docstrings

        return [read_docstrings()]
    if isinstance(source, DatasetSource):
        from components.data_sources.hub import read_dataset

        return [read_dataset(name, source)]
    from components.data_sources.files import read_file

    return [read_file(path) for path in listed_files(manifests / f"{name}.json")]


def _convert(name: str, item: Item, columns: Columns | None, max_characters: int) -> Record:
    """Raises BadRecordError; an unknown shape says which keys were found and which are known."""
    if item.reason:
        raise shapes.BadRecordError(item.reason, item.detail)
    if not isinstance(item.value, dict):
        raise shapes.BadRecordError("not_an_object", f"a {type(item.value).__name__}")
    if columns is not None:
        missing = [key for key in (columns.prompt, columns.response) if key not in item.value]
        if missing:
            raise shapes.BadRecordError(
                "unknown_shape", f"no column {missing[0]!r}; there are {', '.join(map(repr, item.value))}"
            )
        messages = shapes.from_columns(item.value, columns)
    else:
        convert = shapes.recognize(item.value)
        if convert is None:
            raise shapes.BadRecordError(
                "unknown_shape",
                f"keys {', '.join(map(repr, list(item.value)[:8]))}; known are instruction/input/output, "
                "instruction/context/response, conversations and messages; "
                f"for anything else name the columns: {PARAMS}: the source's columns",
            )
        messages = convert(item.value)
    kept, cut = shapes.finish(messages)
    record = make_record(name, kept, {"where": item.where, **({"cut_messages": cut} if cut else {})})
    length = sum(len(message.content) for message in kept)
    if length > max_characters:
        raise shapes.BadRecordError("too_long", f"{length} characters, more than ingest.max_characters", record.id)
    return record


def _rejection(
    source: str, where: str, id_: str | None, reason: str, detail: str, *, bad: bool = True
) -> dict[str, Any]:
    return {"source": source, "where": where, "id": id_, "reason": reason, "detail": detail[:300], "bad": bad}


def _refuse_too_many(name: str, rejected: list[dict[str, Any]], read: int, limit: float) -> None:
    if not rejected or len(rejected) <= limit * read:
        return
    reasons = ", ".join(
        f"{count} {reason}" for reason, count in Counter(row["reason"] for row in rejected).most_common()
    )
    first = rejected[0]
    raise UserError(
        f"source {name}: {len(rejected)} of {read} records cannot be used ({reasons}), "
        f"more than ingest.max_rejected_share {limit}; first: {first['where']}: {first['reason']}: {first['detail']}"
    )


def _cap(records: list[Record], cap: int | None) -> tuple[list[Record], list[dict[str, Any]]]:
    """At most `cap` records, those of the smallest ids: ids are hashes, so this is a sample that new data hardly move.

    A conversation that occurs twice counts twice, as it does without a cap.
    """
    if cap is None or len(records) <= cap:
        return records, []
    smallest = sorted(range(len(records)), key=lambda index: (records[index].id, index))[:cap]
    chosen = set(smallest)
    over = [
        _rejection(record.source, record.meta["where"], record.id, "over_cap", f"cap is {cap}", bad=False)
        for index, record in enumerate(records)
        if index not in chosen
    ]
    return [record for index, record in enumerate(records) if index in chosen], over


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m components.ingest", description="Read every source into records.")
    parser.add_argument("--manifests", type=Path, required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--rejected", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    options = parser.parse_args()
    with stage("ingest", hub=True) as running, statement_of(running.name):
        settings = load_settings().ingest
        result = ingest(settings, options.manifests)
        for manifest in options.manifests.glob("*.json"):
            if manifest.stem not in settings.files:  # of a source that is gone: a fresh clone would not have it
                manifest.unlink()
        write_records(options.records, result.records)
        tables.write(options.rejected, pa.Table.from_pylist(result.rejected, schema=tables.REJECTED), tables.REJECTED)
        write_json(options.metrics, {"records": len(result.records), "sources": result.counts})
        for name, counts in result.counts.items():
            print(f"ingest: {name}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))


if __name__ == "__main__":
    main()
