"""A pool of eight records with scores, for tests of the selection."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from components.data import tables
from components.data.records import Message, Record, make_record

COMPLEXITY = [0.2, 1.3, 0.9, None, 0.5, 1.0, 0.7, 0.5]  # of each record; None is unscorable


def eight_records() -> list[Record]:
    """Records of two sources whose responses differ in a word."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    return [
        make_record(
            "even" if number % 2 else "odd",
            [Message("user", f"Say {word}."), Message("assistant", f"Here is {word}, said once.")],
            {"line": number},
        )
        for number, word in enumerate(words)
    ]


def scores_of(records: Sequence[Record], complexity: Sequence[float | None]) -> pa.Table:
    """tables.SCORES of the records."""
    return pa.table(
        {
            "id": [record.id for record in records],
            "response_tokens": [5] * len(records),
            "nll_conditional": complexity,
            "nll_unconditional": complexity,
            "complexity": complexity,
            "reason": [None if value is not None else "the response is empty" for value in complexity],
        },
        schema=tables.SCORES,
    )
