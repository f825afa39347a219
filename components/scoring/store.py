"""Stored losses and embeddings: a killed scoring stage resumes from them, and a repeated one does not compute them."""

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
from components.data.embeddings import Matrix, as_lists, as_matrix
from components.provenance.digests import cached_digest
from components.scoring.losses import Text

STORE = SCRATCH / "scores"
STORE_FORMAT = "2"  # to be raised when a change of the code changes losses: those stored before are no longer used
EMBEDDINGS = SCRATCH / "embeddings"
EMBEDDINGS_FORMAT = "1"  # to be raised likewise


class Store:
    """Losses by key (pair_key), in one folder per model and dtype (open_store).

    Each window of records is one Parquet file, a shard.
    """

    def __init__(self, folder: Path) -> None:
        """Read all shards of `folder`, which need not exist yet."""
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
        """Losses, shape (keys, 2); nan where there are none stored."""
        wanted = np.array(keys, dtype="S32")
        losses = np.full((len(keys), 2), np.nan)
        if len(self._keys):
            rows = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            stored = self._keys[rows] == wanted
            losses[stored] = self._losses[rows[stored]]
        return losses

    def add(self, keys: Sequence[str], losses: npt.NDArray[np.float64]) -> None:
        """Store losses, shape (keys, 2), for those who open the store from now on; this object does not find them."""
        shard = pa.table({"key": list(keys), "conditional": losses[:, 0], "unconditional": losses[:, 1]})
        with atomic_write(self.folder / f"{_shard_name(keys)}.parquet") as temporary:
            pq.write_table(shard, temporary)


class EmbeddingStore:
    """Embeddings in one folder per model and dtype (open_embeddings): a file for each window of records, as a whole."""

    def __init__(self, folder: Path) -> None:
        """`folder` need not exist yet."""
        self.folder = folder

    def find(self, keys: Sequence[str]) -> Matrix | None:
        """The embeddings of a window whose records have these keys; None when it is not stored, or damaged."""
        try:
            with pq.ParquetFile(self._place(keys)) as file:
                return as_matrix(file.read()["embedding"].combine_chunks())
        except (pa.ArrowInvalid, KeyError, OSError):
            return None

    def add(self, keys: Sequence[str], embeddings: Matrix) -> None:
        """Store the embeddings of a window, shape (scorable records, width)."""
        with atomic_write(self._place(keys)) as temporary:
            pq.write_table(pa.table({"embedding": as_lists(embeddings)}), temporary)

    def _place(self, keys: Sequence[str]) -> Path:
        return self.folder / f"{_shard_name(keys)}.parquet"


def _shard_name(keys: Sequence[str]) -> str:
    return hashlib.sha256("".join(keys).encode()).hexdigest()[:32]


def _read_shard(path: Path) -> pa.Table | None:
    """A shard's table; None when the file is damaged, so that its records are scored again and the file is replaced."""
    try:
        # not pq.read_table, which imports pyarrow.dataset
        with pq.ParquetFile(path) as file:
            return file.read().select(["key", "conditional", "unconditional"])
    except (pa.ArrowInvalid, KeyError, OSError):
        return None


def open_store(folder: Path, dtype: str) -> Store:
    """The store of a model folder. Template, system message and truncation are part of the keys, by the token ids."""
    return Store(STORE / _name_for(STORE_FORMAT, folder, dtype))


def open_embeddings(folder: Path, dtype: str) -> EmbeddingStore:
    """The stored embeddings of a model folder, with keys as in `open_store`."""
    return EmbeddingStore(EMBEDDINGS / _name_for(EMBEDDINGS_FORMAT, folder, dtype))


def _name_for(stored_format: str, folder: Path, dtype: str) -> str:
    parts = [stored_format, cached_digest(folder), dtype, version("torch"), version("transformers")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def pair_key(pair: tuple[Text, Text]) -> str:
    """A record's key in the store, 32 hex characters: a hash of both texts' token ids and scored positions."""
    key = hashlib.sha256()
    for text in pair:
        key.update(np.array([len(text.ids), text.start, *text.ids], dtype="<i8").tobytes())
    return key.hexdigest()[:32]
