"""What is never versioned, and where it lies: locks, timings, downloads, what a killed stage can go on from."""

from __future__ import annotations

from pathlib import Path

SCRATCH = Path(".iterit")
SECONDS = SCRATCH / "seconds"  # how long each stage took when it last ran here


def seconds_file(stage: str) -> Path:
    return SECONDS / f"{stage}.json"


def throughput_file(stage: str) -> Path:
    return SCRATCH / "throughput" / f"{stage}.json"
