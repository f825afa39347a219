"""`ingest`: the sources of records and their limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from components.core.settings.block import NAME, Block, PositiveInt, Share


class Limits(Block):
    """What every kind of source has."""

    cap: PositiveInt | None = None
    """At most so many records of this source, sampled by content id."""
    weight: float = Field(default=1.0, gt=0)
    """Relative share of the pool where dedupe.max_records leaves records out."""


class Columns(Block):
    """A column mapping, for shapes that are not recognized."""

    prompt: str
    """Column that holds the user's message."""
    response: str
    """Column that holds the assistant's answer."""
    input: str | None = None
    """Column that is appended to the prompt as Alpaca's input is."""
    system: str | None = None
    """Column that holds the system message."""


class FileSource(Limits):
    path: str
    """A file or a folder (JSON, JSONL, CSV, Parquet; also .gz and .zst). DVC watches it."""
    pattern: str = "**/*"
    """Glob below a folder."""
    columns: Columns | None = None


class DocstringSource(Limits):
    """Documentation strings of the running Python's standard library."""


class DatasetSource(Limits):
    name: str
    """A dataset id on the Hugging Face hub, or a folder written by `save_to_disk`."""
    config: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = "train"
    """Split, or a slice of one such as `train[:1000]`."""
    revision: str | None = None
    """Commit, tag or branch; needed for a hub dataset."""
    columns: Columns | None = None


class IngestSettings(Block):
    docstrings: dict[Annotated[str, Field(pattern=NAME)], DocstringSource] = {}
    files: dict[Annotated[str, Field(pattern=NAME)], FileSource]  # no default: dvc.yaml makes a stage of each
    datasets: dict[Annotated[str, Field(pattern=NAME)], DatasetSource] = {}
    max_characters: PositiveInt = 20_000
    """A longer conversation is rejected as too_long."""
    max_rejected_share: Share = 0.1
    """The stage fails when a larger share of what a source holds is bad."""

    @model_validator(mode="after")
    def names_are_unique(self) -> IngestSettings:
        names = [*self.docstrings, *self.files, *self.datasets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"source name {twice[0]!r} is used twice; every source needs a name of its own")
        if not names:
            raise ValueError("no source; name at least one under docstrings, files or datasets")
        return self

    @property
    def sources(self) -> dict[str, DocstringSource | FileSource | DatasetSource]:
        return {**self.docstrings, **self.datasets, **self.files}
