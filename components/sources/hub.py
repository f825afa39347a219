"""A dataset through the `datasets` library: from the Hugging Face hub, or a folder that `save_to_disk` wrote."""

from __future__ import annotations

from pathlib import Path

from components.errors import Unreachable, UserError
from components.settings import PARAMS, DatasetSource
from components.sources import Item, Items


def read_dataset(name: str, source: DatasetSource) -> Items:
    """Yield the rows of the split. Raises UserError for what is not there, Unreachable when the hub does not answer."""
    key = f"{PARAMS}: ingest.datasets.{name}"
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    datasets.disable_progress_bars()
    if Path(source.name).exists():
        try:
            loaded = datasets.load_from_disk(source.name)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{key}.name: {source.name}: no folder that save_to_disk wrote") from error
        if isinstance(loaded, datasets.DatasetDict):
            if source.split not in loaded:
                raise UserError(f"{key}.split: no {source.split!r} in {source.name}; there are {', '.join(loaded)}")
            loaded = loaded[source.split]
    else:
        if source.revision is None:
            raise UserError(f"{key}.revision: missing; name a commit of {source.name}, so that the data stay the same")
        try:
            loaded = datasets.load_dataset(source.name, source.config, split=source.split, revision=source.revision)
        except DatasetNotFoundError as error:
            raise UserError(f"{key}.name: {source.name} (revision {source.revision}): not found on the hub") from error
        except ValueError as error:  # an unknown split or configuration
            raise UserError(f"{key}: {source.name}: {str(error).splitlines()[0]}") from error
        except (ConnectionError, OSError) as error:
            raise Unreachable(f"{key}.name: {source.name}: the hub does not answer; try again later") from error
    for number, value in enumerate(loaded, 1):
        yield Item(f"{source.name} {source.split} row {number}", value)
