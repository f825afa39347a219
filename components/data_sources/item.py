"""`Item`: what every reader of a source yields, whatever the kind of the source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Item:
    """A value of a source as it was read, or the reason why it cannot be read."""

    where: str
    """The place in words that a person can follow: `data/a.jsonl line 3`, `textwrap.dedent (textwrap.py line 405)`."""
    value: Any
    """Usually a JSON object; None when there is a reason."""
    reason: str | None = None
    """One word for the column `reason` of tables.REJECTED."""
    detail: str = ""


Items = Iterator[Item]
