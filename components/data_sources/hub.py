"""A dataset through the `datasets` library: from the Hugging Face hub, or a folder that `save_to_disk` wrote."""

from __future__ import annotations

import re
from pathlib import Path

from components.core.errors import Unreachable, UserError
from components.core.paths import PARAMS
from components.core.settings.ingest import DatasetSource
from components.data_sources.item import Item, Items

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def read_dataset(name: str, source: DatasetSource) -> Items:
    """Yield the rows of the split. Raises UserError for what is not there, Unreachable when the hub does not answer."""
    key = f"{PARAMS}: ingest.datasets.{name}"
    on_disk = Path(source.name).exists()
    if not on_disk and not HUB_ID.fullmatch(source.name):
        raise UserError(f"{key}.name: {source.name}: neither a folder here nor a name on the hub (owner/name)")
    if not on_disk and source.revision is None:
        raise UserError(f"{key}.revision: missing; name a commit of {source.name}, so that the data stay the same")
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    datasets.disable_progress_bars()
    if on_disk:
        try:
            loaded = datasets.load_from_disk(source.name)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{key}.name: {source.name}: no folder that save_to_disk wrote") from error
        if isinstance(loaded, datasets.DatasetDict):
            if source.split not in loaded:
                raise UserError(f"{key}.split: no {source.split!r} in {source.name}; there are {', '.join(loaded)}")
            loaded = loaded[source.split]
    else:
        try:
            loaded = datasets.load_dataset(source.name, source.config, split=source.split, revision=source.revision)
        except DatasetNotFoundError as error:
            raise UserError(f"{key}.name: {source.name} (revision {source.revision}): not found on the hub") from error
        except DatasetGenerationError as error:
            raise UserError(f"{key}: {source.name}: {error.__cause__ or error}".splitlines()[0]) from error
        except ValueError as error:  # an unknown split or configuration
            raise UserError(f"{key}: {source.name}: {str(error).splitlines()[0]}") from error
        except (ConnectionError, OSError) as error:
            raise Unreachable(f"{key}.name: {source.name}: the hub does not answer; try again later") from error
    for number, value in enumerate(loaded, 1):
        yield Item(f"{source.name} {source.split} row {number}", value)
