"""Losses that are known already, on disk: a killed scoring stage resumes from them, and a repeated one reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.core.files import atomic_write
from components.core.paths import SCRATCH
from components.provenance.digests import cached_digest
from components.scoring.losses import Text

STORE = SCRATCH / "scores"
STORE_FORMAT = "2"  # raise it when a change of the code changes losses: stored ones are not found any more


class Store:
    """Losses by what determines them: the model's files, the dtype, and the token ids of both texts.

    Each window of records is one Parquet file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shards = [shard for path in sorted(folder.glob("*.parquet")) if (shard := _read_shard(path)) is not None]
        keys = np.concatenate(
            [np.array(shard["key"].to_pylist(), dtype="S32") for shard in shards] or [np.array([], "S32")]
        )
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._losses = np.concatenate(
            [np.column_stack([shard["conditional"], shard["unconditional"]]) for shard in shards] or [np.empty((0, 2))]
        )[self._order]

    def find(self, keys: Sequence[str]) -> npt.NDArray[np.float64]:
        """Losses, shape (keys, 2); nan where they are not known."""
        wanted = np.array(keys, dtype="S32")
        found = np.full((len(keys), 2), np.nan)
        if len(self._keys):
            places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            known = self._keys[places] == wanted
            found[known] = self._losses[places[known]]
        return found

    def add(self, keys: Sequence[str], losses: npt.NDArray[np.float64]) -> None:
        """Store losses, shape (keys, 2), for the next process that opens the store; this one does not see them."""
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
        shard = pa.table({"key": list(keys), "conditional": losses[:, 0], "unconditional": losses[:, 1]})
        with atomic_write(self.folder / f"{name}.parquet") as temporary:
            pq.write_table(shard, temporary)


def _read_shard(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path, columns=["key", "conditional", "unconditional"])
    except (pa.ArrowInvalid, OSError):
        return None  # damaged on disk: its records are scored again, and the file is replaced


def open_store(folder: Path, dtype: str) -> Store:
    """The store of a model folder. Template, system message and truncation are in the keys, by the token ids."""
    parts = [STORE_FORMAT, cached_digest(folder), dtype, version("torch"), version("transformers")]
    return Store(STORE / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32])


def pair_key(pair: tuple[Text, Text]) -> str:
    """The key of a record in the store: a hash of both texts' token ids and scored positions, 32 hex characters."""
    key = hashlib.sha256()
    for text in pair:
        key.update(np.array([len(text.ids), text.start, *text.ids], dtype="<i8").tobytes())
    return key.hexdigest()[:32]
