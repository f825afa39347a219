"""`ingest`: the sources of records and their limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from components.core.settings.block import NAME, Block, PositiveInt, Share


class Limits(Block):
    """Keys that every kind of source has."""

    cap: PositiveInt | None = None
    """Maximum number of records of this source; above it, a sample by content id is kept."""
    weight: float = Field(default=1.0, gt=0)
    """Relative share of the pool, where dedupe.max_records limits it."""
    target: bool = False
    """Its records are examples of what the model is for: never trained on, but measured on: docs/data.md."""


class Columns(Block):
    """Names of columns, for shapes that are not recognized."""

    prompt: str
    """Column that holds the user's message."""
    response: str
    """Column that holds the assistant's response."""
    input: str | None = None
    """Column that is appended to the prompt, like the input of Alpaca."""
    system: str | None = None
    """Column that holds the system message."""


class FileSource(Limits):
    path: str
    """A file or a folder (JSON, JSONL, CSV, Parquet, Arrow; each also with .gz or .zst). DVC notices every change."""
    pattern: str = "**/*"
    """Glob of the files to read, where path is a folder."""
    follow_links: bool = False
    """Whether links that lead out of the folder are followed; without, they are listed as ignored. DVC notices changes
    behind linked files, not behind linked folders."""
    columns: Columns | None = None


class DocstringSource(Limits):
    """Docstrings of the standard library of the running Python."""


class DatasetSource(Limits):
    name: str
    """A dataset id on the Hugging Face hub, or a folder written by `save_to_disk`."""
    config: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = "train"
    """Split, or a slice of one such as `train[:1000]`."""
    revision: str | None = None
    """Commit, tag or branch; required for a hub dataset."""
    columns: Columns | None = None


Source = DocstringSource | FileSource | DatasetSource


class IngestSettings(Block):
    docstrings: dict[Annotated[str, Field(pattern=NAME)], DocstringSource] = {}
    files: dict[Annotated[str, Field(pattern=NAME)], FileSource]  # no default: dvc.yaml unrolls a stage for each
    datasets: dict[Annotated[str, Field(pattern=NAME)], DatasetSource] = {}
    max_characters: PositiveInt = 20_000
    """Longer conversations are rejected as too_long."""
    max_line_bytes: PositiveInt = 16_777_216
    """Longest line of JSONL, row of CSV, value of a list in JSON, and JSON file that holds a single object."""
    max_file_bytes: PositiveInt = 1_073_741_824
    """Largest file of data, after decompression."""
    max_rejected_share: Share = 0.1
    """The stage fails when a larger share of a source is rejected; records over a cap do not count."""

    @model_validator(mode="after")
    def names_are_unique(self) -> IngestSettings:
        names = [*self.docstrings, *self.files, *self.datasets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"source name {twice[0]!r} is used twice; source names must be unique")
        if not names:
            raise ValueError("no source; name at least one under docstrings, files or datasets")
        if len(self.targets) == len(names):
            raise ValueError("every source has target: true, and none is left to train on; name another source")
        return self

    @property
    def sources(self) -> dict[str, Source]:
        """All sources by name, in the order in which they are read."""
        return {**self.docstrings, **self.datasets, **self.files}

    @property
    def targets(self) -> list[str]:
        """Names of the sources with `target: true`."""
        return [name for name, source in self.sources.items() if source.target]
