"""One bar with an estimate for long work: tqdm on a terminal, now and then a plain line in a log.

with progress(total=len(records), unit="records", what="score@1") as advance:
    advance(8)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(*, total: int | None, unit: str, what: str) -> Iterator[Callable[[int], None]]:
    """Yields `advance(count)`; `total` is None where nobody knows it.

    Everything goes to stderr; work shorter than 10 s leaves no line in a log.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, unit=f" {unit}", desc=what, dynamic_ncols=True, smoothing=0.1) as bar:

            def advance_bar(count: int) -> None:
                bar.update(count)

            yield advance_bar
        return

    started = last_line = time.monotonic()
    done = 0

    def advance_lines(count: int) -> None:
        nonlocal done, last_line
        done += count
        now = time.monotonic()
        if now - last_line < SECONDS_BETWEEN_LINES:
            return
        last_line = now
        print(describe(what, done, total, unit, now - started), file=sys.stderr, flush=True)

    yield advance_lines


def describe(what: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    """One line: `score@1: 120 of 320 records (38 %), 6.1 records/s, 33 s left`."""
    rate = done / seconds if seconds > 0 else 0.0
    if total is None:
        return f"{what}: {done} {unit}, {rate:.2g} {unit}/s"
    left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
    share = f" ({100 * done / total:.0f} %)" if total else ""
    return f"{what}: {done} of {total} {unit}{share}, {rate:.2g} {unit}/s{left}"
