"""Datasets that the `datasets` library loads: from the Hugging Face hub, or from a folder of `save_to_disk`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.core.errors import Unreachable, UserError, first_line
from components.core.files import is_full_disk
from components.core.paths import PARAMS
from components.core.settings.ingest import DatasetSource
from components.data_sources.arrow_files import ROWS, convert_rows, validate, wanted_columns
from components.data_sources.item import Item, Items
from components.data_sources.reading import Reading

PLAIN_NAME = re.compile(r"[^/\\\x00]+\.arrow")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def read_dataset(name: str, source: DatasetSource, reading: Reading | None = None) -> Items:
    """Yield the rows of the split of the source `name`; a column that no record is made of is None in every row.

    Raises UserError for a dataset, split or configuration that does not exist and for a hub dataset without a
    revision, and Unreachable when the hub does not answer.
    """
    key = f"{PARAMS}: ingest.datasets.{name}"
    loaded = _load_from_disk(key, source) if Path(source.name).exists() else _load_from_hub(key, source)
    number, where = 0, f"{source.name} {source.split}"
    wanted = wanted_columns(where, loaded.column_names, reading or Reading(source.columns))
    for batch in _batches(where, loaded.select_columns(wanted).with_format("arrow")):
        validate(where, batch)  # the files are mapped into memory as they are
        for value, reason, detail in convert_rows(batch, loaded.column_names):
            number += 1
            yield Item(f"{where} row {number}", value, reason, detail)


def _batches(where: str, loaded: Any) -> Iterator[Any]:
    """The rows as Arrow tables. Raises UserError for rows that cannot be read."""
    try:
        yield from loaded.iter(ROWS)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{where}: cannot be read: {first_line(error)}") from error


def _load_from_disk(key: str, source: DatasetSource) -> Any:
    """The `datasets.Dataset` of the split."""
    import datasets

    datasets.disable_progress_bars()
    _check_data_files(key, source)
    try:
        loaded = datasets.load_from_disk(source.name)
    except Exception as error:  # files of somebody else fail anywhere in datasets
        problem = "not a folder that save_to_disk wrote"
        raise UserError(f"{key}.name: {source.name}: {problem}: {first_line(error)[:200]}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if source.split not in loaded:
        raise UserError(f"{key}.split: no {source.split!r} in {source.name}; there are {', '.join(loaded)}")
    return loaded[source.split]


def _check_data_files(key: str, source: DatasetSource) -> None:
    """Raises UserError where a saved dataset would be read from anywhere but its own folder."""
    for state in sorted(Path(source.name).glob("**/state.json")):
        try:
            files = [file["filename"] for file in json.loads(state.read_bytes())["_data_files"]]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            problem = f"not a list of data files: {first_line(error)[:200]}"
            raise UserError(f"{key}.name: {state}: {problem}") from error
        for file in files:
            if not isinstance(file, str) or not PLAIN_NAME.fullmatch(file):
                problem = f"{str(file)[:200]!r} is not followed: data files are *.arrow of the same folder"
                raise UserError(f"{key}.name: {state}: {problem}")


def _load_from_hub(key: str, source: DatasetSource) -> Any:
    """The `datasets.Dataset` of the split."""
    if not HUB_ID.fullmatch(source.name):
        raise UserError(f"{key}.name: {source.name}: neither a folder here nor a name on the hub (owner/name)")
    if source.revision is None:
        raise UserError(f"{key}.revision: missing; name a commit of {source.name}, so that the data stay the same")
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(source.name, source.config, split=source.split, revision=source.revision)
    except DatasetNotFoundError as error:
        raise UserError(f"{key}.name: {source.name} (revision {source.revision}): not found on the hub") from error
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        if is_full_disk(cause):
            raise cause from error
        raise UserError(f"{key}: {source.name}: {first_line(cause)}") from error
    except OSError as error:
        if is_full_disk(error):
            raise
        raise Unreachable(f"{key}.name: {source.name}: the hub does not answer; try again later") from error
    except Exception as error:  # an unknown split or configuration; files of somebody else fail anywhere in datasets
        raise UserError(f"{key}: {source.name}: {first_line(error)}") from error
