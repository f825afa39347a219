"""Stage `ingest`: reads every source into records, and lists each value that is left out with its place and a reason.

The sources are read in this order: docstrings, datasets, files. Records of a source with `target: true` are examples of
what the model is for. They have a table of their own, so that no later stage can train on them.

Records are written as they are read: in memory are the targets, at most `cap` records of a source that has one, and
the rejections, 500 bytes each.

    python -m components.ingest --manifests data/sources --records data/raw.parquet --targets data/target.parquet
        --rejected data/rejected.parquet --metrics metrics/ingest.json
"""

from __future__ import annotations

import argparse
import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from components.core.errors import UserError, printable
from components.core.files import write_json
from components.core.params import load_settings
from components.core.paths import PARAMS
from components.core.progress import progress
from components.core.settings.ingest import Columns, DatasetSource, DocstringSource, FileSource, IngestSettings, Source
from components.core.stage import stage
from components.data import tables
from components.data.records import Record, make_record, records_writer, write_records
from components.data.tables import Rejection
from components.data_sources import shapes
from components.data_sources.file_manifest import list_files, listed_files
from components.data_sources.item import Item, Items
from components.data_sources.shapes import BadRecordError
from components.provenance.statements import statement_of

DETAIL_LENGTH = 300  # characters of a rejection's detail that are kept
ENOUGH_REJECTED = 100_000  # values after which the share of a source is checked before its end: memory is finite


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """Numbers of values of one source: read = kept + rejected + over_cap; a repeated target counts as rejected."""

    read: int
    kept: int
    rejected: int
    over_cap: int


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What metrics/ingest.json holds: the number of records, and the counts of each source by its name."""

    records: int
    sources: dict[str, SourceCounts]
    files_without_records: list[str]

    def to_json(self) -> dict[str, Any]:
        """The fields; `files_without_records` only where there are some."""
        fields = asdict(self)
        if not self.files_without_records:
            del fields["files_without_records"]
        return fields


Keep = Callable[[Record], None]
"""Takes a record that stays."""


@dataclass(frozen=True, slots=True)
class Ingested:
    """What was read of all sources beside their records."""

    records: int
    targets: list[Record]
    """Those of the sources with `target: true`, each conversation once."""
    rejected: list[Rejection]
    counts: dict[str, SourceCounts]
    files_without_records: list[str]

    def summary(self) -> IngestSummary:
        return IngestSummary(self.records, self.counts, self.files_without_records)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a source that may differ in shape from the others: a file, or a source of another kind as a whole."""

    file: Path | None
    items: Items


@dataclass(slots=True)
class SourceRead:
    """How many records a source has, a rejection for every value that makes none, and the silent files."""

    records: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    files_without_records: list[str] = field(default_factory=list)


def ingest(settings: IngestSettings, manifests: Path, keep: Keep) -> Ingested:
    """Read all sources; `manifests` is the folder with the manifest NAME.json of each local source.

    `keep` gets each record of a source that is no target, in their order. Raises UserError when a source cannot be
    read, when too large a share of a source is rejected, when a source with `target: true` has no record, and when no
    other source has one.
    """
    total = 0
    targets: list[Record] = []
    rejected: list[Rejection] = []
    counts: dict[str, SourceCounts] = {}
    files_without_records: list[str] = []
    for name, source in settings.sources.items():
        own: list[Record] = []  # of a target
        capped = _Capped(source.cap) if source.cap is not None else None
        take = own.append if source.target else capped.add if capped else keep
        read = read_source(name, source, manifests, settings, take)
        count = read.records + len(read.rejected)
        _check_rejected_share(name, read.rejected, count, settings.max_rejected_share)
        if source.target and not read.records:
            raise UserError(without_example(name, source))
        left, repeated = _split_repeated(own, targets)
        over_cap: list[Rejection] = []
        if capped is None:
            targets.extend(left)
        else:
            for record in left:
                capped.add(record)
            for record in capped.kept():
                (targets.append if source.target else keep)(record)
            over_cap = capped.over_cap()
        kept = read.records - len(repeated) - len(over_cap)
        total += 0 if source.target else kept
        rejected.extend([*read.rejected, *repeated, *over_cap])
        files_without_records.extend(read.files_without_records)
        counts[name] = SourceCounts(count, kept, len(read.rejected) + len(repeated), len(over_cap))
    if not total:
        raise UserError(
            f"{PARAMS}: ingest: no source holds a record ({', '.join(settings.sources)}); "
            "put a file into one of the folders under ingest.files, or name another source"
        )
    return Ingested(total, targets, rejected, counts, files_without_records)


def has_record(name: str, source: FileSource, settings: IngestSettings) -> bool:
    """Whether a local source has a record; its files are read up to the first. Raises UserError for a broken file."""
    from components.data_sources.files import read_file
    from components.data_sources.reading import Reading

    reading = Reading(source.columns, settings.max_line_bytes, settings.max_file_bytes)
    for listed in list_files(name, source).files:
        for item in read_file(Path(listed.path), reading):
            try:
                _convert(name, item, source.columns, settings.max_characters)
            except BadRecordError:
                continue
            return True
    return False


def without_example(name: str, source: Source) -> str:
    """The error for a source with `target: true` that has no record."""
    kind = "files" if isinstance(source, FileSource) else "datasets" if isinstance(source, DatasetSource) else None
    place = f": {source.path}" if isinstance(source, FileSource) else ""
    return (
        f"{PARAMS}: ingest.{kind or 'docstrings'}.{name}{place}: no record in it; a source with target: true needs "
        "at least one example of what the model is for (docs/data.md has the shapes)"
    )


def read_source(name: str, source: Source, manifests: Path, settings: IngestSettings, keep: Keep) -> SourceRead:
    """The values of one source: `keep` gets the records, in their order.

    Raises UserError for a file in which no value has a known shape, for a column of the source's `columns` that occurs
    in no value, and when too large a share of very many values is rejected.
    """
    read = SourceRead()
    columns = None if isinstance(source, DocstringSource) else source.columns
    unseen = {key for key in (columns.input, columns.system) if key} if columns else set()
    for part in _parts(name, source, manifests, settings):
        records_before, unknown_shape = read.records, None
        for item in part.items:
            if unseen and isinstance(item.value, dict):
                unseen.difference_update(item.value)
            try:
                keep(_convert(name, item, columns, settings.max_characters))
                read.records += 1
            except BadRecordError as bad:
                read.rejected.append(_rejection(name, item.where, bad))
                if bad.reason == "unknown_shape":
                    unknown_shape = unknown_shape or _unknown_shape(name, source, item, bad)
                if len(read.rejected) % ENOUGH_REJECTED == 0:
                    count = read.records + len(read.rejected)
                    _check_rejected_share(name, read.rejected, count, settings.max_rejected_share)
        if read.records == records_before:
            if unknown_shape:  # not single values, but the whole file
                raise UserError(unknown_shape)
            if part.file:
                read.files_without_records.append(part.file.as_posix())
    if read.records and unseen:
        raise UserError(f"source {name}: no record has the column {min(unseen)!r}, which the source's columns name")
    return read


def _parts(name: str, source: Source, manifests: Path, settings: IngestSettings) -> Iterator[Part]:
    if isinstance(source, DocstringSource):
        from components.data_sources.docstrings import read_docstrings

        yield Part(None, read_docstrings())
        return
    from components.data_sources.reading import Reading

    reading = Reading(source.columns, settings.max_line_bytes, settings.max_file_bytes)
    if isinstance(source, DatasetSource):
        from components.data_sources.hub import read_dataset

        yield Part(None, read_dataset(name, source, reading))
        return
    from components.data_sources.files import read_file

    for path in listed_files(manifests / f"{name}.json"):
        yield Part(path, read_file(path, reading))


def _unknown_shape(name: str, source: Source, item: Item, bad: BadRecordError) -> str:
    """The error for a file of unknown shape, with the line of params.yaml that would make it known."""
    proposal = shapes.propose_columns(item.value) if isinstance(item.value, dict) else None
    if proposal is None:
        return f"{item.where}: {bad.detail}"
    kind = "datasets" if isinstance(source, DatasetSource) else "files"
    return f"{item.where}: {bad.detail}; for these, in {PARAMS} under ingest.{kind}.{name}: {proposal}"


def _convert(name: str, item: Item, columns: Columns | None, max_characters: int) -> Record:
    """The record of an item of the source `name`. Raises BadRecordError."""
    if item.reason:
        raise BadRecordError(item.reason, item.detail)
    if not isinstance(item.value, dict):
        raise BadRecordError("not_an_object", f"a {type(item.value).__name__}")
    messages, cut = shapes.finish(_messages(item.value, columns))
    record = make_record(name, messages, {"where": item.where, **({"cut_messages": cut} if cut else {})})
    length = sum(len(message.content) for message in messages)
    if length > max_characters:
        raise BadRecordError("too_long", f"{length} characters, more than ingest.max_characters", record.id)
    return record


def _messages(value: dict[str, Any], columns: Columns | None) -> shapes.Turns:
    """The conversation of a value. Raises BadRecordError, which for an unknown shape names the value's keys."""
    if columns is not None:
        missing = [key for key in (columns.prompt, columns.response) if key not in value]
        if missing:
            raise BadRecordError("unknown_shape", f"no column {missing[0]!r}; there are {', '.join(map(repr, value))}")
        return shapes.from_columns(value, columns)
    convert = shapes.recognize(value)
    if convert is None:
        raise BadRecordError("unknown_shape", shapes.describe_unknown(value))
    return convert(value)


def _rejection(source: str, where: str, bad: BadRecordError) -> Rejection:
    return Rejection(source, where, bad.record_id, bad.reason, bad.detail[:DETAIL_LENGTH], bad=True)


def _check_rejected_share(name: str, rejected: list[Rejection], count: int, limit: float) -> None:
    """Raises UserError when more than the share `limit` of the `count` values of a source is rejected."""
    if not rejected or len(rejected) <= limit * count:
        return
    by_reason = Counter(row.reason for row in rejected).most_common()
    reasons = ", ".join(f"{number} {reason}" for reason, number in by_reason)
    first = rejected[0]
    raise UserError(
        f"source {name}: {len(rejected)} of {count} records cannot be used ({reasons}), "
        f"more than ingest.max_rejected_share {limit}; first: {first.where}: {first.reason}: {first.detail}"
    )


def _split_repeated(records: list[Record], before: list[Record]) -> tuple[list[Record], list[Rejection]]:
    """The records that are not among those `before`, each once, and a rejection for each of the others."""
    kept, repeated = [], []
    seen = {record.id for record in before}
    for record in records:
        if record.id in seen:
            where, detail = record.meta["where"], "the same conversation as an earlier example"
            repeated.append(Rejection(record.source, where, record.id, "repeated", detail, bad=False))
        else:
            seen.add(record.id)
            kept.append(record)
    return kept, repeated


class _Capped:
    """At most `cap` of a source's records, those with the smallest ids, and a rejection for each of the others.

    Ids are hashes, so this is a sample that new data hardly change. A conversation that occurs twice counts twice, as
    it does without a cap.
    """

    def __init__(self, cap: int) -> None:
        self._cap, self._count = cap, 0
        self._heap: list[tuple[int, int, Record]] = []  # the largest id first, of equal ones the last
        self._over: list[tuple[int, Rejection]] = []

    def add(self, record: Record) -> None:
        """Take the source's next record."""
        heapq.heappush(self._heap, (-int(record.id, 16), -self._count, record))
        self._count += 1
        if len(self._heap) > self._cap:
            _, place, dropped = heapq.heappop(self._heap)
            where, detail = dropped.meta["where"], f"cap is {self._cap}"
            self._over.append((-place, Rejection(dropped.source, where, dropped.id, "over_cap", detail, bad=False)))

    def kept(self) -> list[Record]:
        """The records that stay, in the order of the source."""
        return [record for _, _, record in sorted(self._heap, key=lambda entry: -entry[1])]

    def over_cap(self) -> list[Rejection]:
        """The others, in the order of the source."""
        return [rejection for _, rejection in sorted(self._over, key=lambda entry: entry[0])]


def _remove_other_manifests(folder: Path, sources: Collection[str]) -> None:
    """Delete the manifests of sources that params.yaml no longer names: a fresh clone would not have them."""
    for manifest in folder.glob("*.json"):
        if manifest.stem not in sources:
            manifest.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m components.ingest", description="Read every source into records.")
    parser.add_argument("--manifests", type=Path, required=True)
    for name in ("records", "targets", "rejected", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    with stage("ingest", hub=True) as running, statement_of(running.name):
        settings = load_settings().ingest
        with (
            records_writer(options.records) as write,
            progress(total=None, unit="records", what=running.name) as advance,
        ):

            def keep(record: Record) -> None:
                write(record)
                advance(1)

            result = ingest(settings, options.manifests, keep)
        _remove_other_manifests(options.manifests, settings.files)
        write_records(options.targets, result.targets)
        tables.write_rows(options.rejected, result.rejected, tables.REJECTED)
        write_json(options.metrics, result.summary().to_json())
        for name, counts in result.counts.items():
            print(f"ingest: {name}: " + ", ".join(f"{number:,} {what}" for what, number in asdict(counts).items()))
        for path in result.files_without_records:
            print(f"ingest: {printable(path)}: no record in this file")


if __name__ == "__main__":
    main()
