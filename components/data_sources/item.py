"""One module a kind of source. Each yields `Item`s: raw values and where they stood, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Item:
    """What a source holds at one place: a raw value, or the reason why there is none."""

    where: str  # as a person would look it up: `data/a.jsonl line 3`, `textwrap.dedent`
    value: Any
    reason: str | None = None  # set when the value could not be read
    detail: str = ""


Items = Iterator[Item]
