"""The rows of `make bench`, and the page that they are written to."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "deepspeed", "scikit-learn", "numpy", "numba")


@dataclass(frozen=True, slots=True)
class Row:
    """Ours beside the other in one run; both times or both rates, so that `unit` tells which way is better."""

    what: str
    ours: float
    other: float | None
    unit: str
    target: str

    @property
    def ratio(self) -> float | None:
        """How many times as fast ours is."""
        if self.other is None:
            return None
        return self.other / self.ours if self.unit == "s" else self.ours / self.other

    def __str__(self) -> str:
        """One line for the terminal."""
        return " | ".join(cell for cell in self.cells() if cell)

    def cells(self) -> tuple[str, str, str, str, str]:
        other = "" if self.other is None else f"{self.other:.4g} {self.unit}"
        ratio = "" if self.ratio is None else f"{self.ratio:.3g}"
        return self.what, f"{self.ours:.4g} {self.unit}".strip(), other, ratio, self.target


def machine() -> str:
    """Processor, cores, memory and versions; no name."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}, {versions}"


def write_results(rows: Sequence[Row], corpus: str, page: Path) -> None:
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`. Ours and the other were measured in turns in one run; the figures are medians. Ratio:",
        "how many times as fast ours is. On a machine that others share the ratios say more than the times.",
        "",
        f"Machine: {machine()}.",
        f"Corpus: {corpus}.",
        "",
        "| what | ours | other | ratio | wanted |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {' | '.join(row.cells())} |" for row in rows),
        "",
    ]
    page.write_text("\n".join(lines), encoding="utf-8")
