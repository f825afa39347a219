"""A check of the audit: what was recorded of a thing, and what it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.core.errors import printable
from components.provenance.recorded import Digests


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison of what was recorded for an artifact with what it has now: a digest, a size, a setting."""

    artifact: str
    recorded: str
    computed: str | None
    """None for an artifact that is not there."""
    may_change: bool = False
    """Whether a difference is worth a line and no mismatch: a source's files before the next run."""

    @property
    def holds(self) -> bool:
        return self.may_change or self.recorded == self.computed

    def __str__(self) -> str:
        """One line, with both values in full where they differ."""
        if self.recorded == self.computed:
            return printable(f"ok        {self.artifact}  {self.recorded[:16]}")
        what = "changed " if self.may_change else "MISMATCH"
        return printable(f"{what}  {self.artifact}  recorded {self.recorded}, found {self.computed or 'nothing'}")


def compare_digests(
    artifact: str, recorded: Digests, computed: Digests | None, *, may_change: bool = False
) -> Iterator[Check]:
    """One check of the digest by which this project knows the artifact, and one of dirHash where both have it."""
    yield Check(artifact, recorded.digest, computed.digest if computed else None, may_change)
    if recorded.dir_hash and computed and computed.dir_hash:
        yield Check(f"{artifact} (dirHash)", recorded.dir_hash, computed.dir_hash, may_change)


def differences(artifact: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Check]:
    """A check of every key whose value differs; `found` None stands for a key that is not there."""
    for key in sorted({*recorded, *found}):
        before, now = (_shown(values[key]) if key in values else None for values in (recorded, found))
        if before != now:
            yield Check(f"{artifact}{key}", before or "nothing", now)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value or "''"
    return json.dumps(value, sort_keys=True, default=str)
