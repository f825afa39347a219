"""The rows of `make bench`, and the page that shows them."""

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
    """A figure of this project, beside that of a baseline in the same run: both times (unit s) or both rates."""

    what: str
    ours: float
    baseline: float | None
    unit: str
    target: str

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the baseline this project is."""
        if self.baseline is None:
            return None
        return self.baseline / self.ours if self.unit == "s" else self.ours / self.baseline

    def __str__(self) -> str:
        """One line for the terminal."""
        return " | ".join(cell for cell in self.cells() if cell)

    def cells(self) -> tuple[str, str, str, str, str]:
        """One row of the page."""
        baseline = "" if self.baseline is None else f"{self.baseline:.4g} {self.unit}"
        ratio = "" if self.ratio is None else f"{self.ratio:.3g}"
        return self.what, f"{self.ours:.4g} {self.unit}".strip(), baseline, ratio, self.target


def machine() -> str:
    """Processor, cores, memory and versions, but no host name."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}, {versions}"


def write_results(rows: Sequence[Row], corpus: str, page: Path) -> None:
    """Write the page."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Each figure and its baseline were measured alternately in one run; all are medians.",
        "The ratio says how many times as fast as the baseline iterit is. On a shared machine ratios are more reliable",
        "than times.",
        "",
        f"Machine: {machine()}.",
        f"Corpus: {corpus}.",
        "",
        "| what | iterit | baseline | ratio | target |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {' | '.join(row.cells())} |" for row in rows),
        "",
    ]
    page.write_text("\n".join(lines), encoding="utf-8")
