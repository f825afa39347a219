"""Renders a checkpoint's chain as one HTML page that needs no network and no library, so that it can be mailed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from components.audit.describe import CheckpointDescription

BINS = 20
WIDTH, HEIGHT = 320, 90  # of a chart, in pixels


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle of a chart, in pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """The bars of a chart, and the lowest and highest value as text."""

    title: str
    low: str
    high: str
    bars: list[Bar]


@dataclass(frozen=True, slots=True)
class Box:
    """A checkpoint in the picture of the chain."""

    name: str
    digest: str | None


def render(description: CheckpointDescription) -> str:
    """The page of a checkpoint that was described with every record."""
    chain = [Box("base model", description.base_model.digest)]
    chain += [Box(f"iteration {step.iteration}", step.checkpoint) for step in description.iterations]
    charts = {
        step.iteration: [
            make_histogram("complexity", [pick.complexity for pick in step.picks]),
            make_histogram("diversity", [pick.diversity for pick in step.picks]),
        ]
        for step in description.iterations
    }
    environment = Environment(autoescape=True, loader=FileSystemLoader(Path(__file__).parent))
    template = environment.get_template("page.html.j2")
    return template.render(description=description, chain=chain, charts=charts, width=WIDTH, height=HEIGHT)


def make_histogram(title: str, values: Sequence[float | None]) -> Histogram:
    """Bars of equal width between the lowest and the highest value; None is left out."""
    known = [value for value in values if value is not None]
    if not known:
        return Histogram(title, "-", "-", [])
    low, high = min(known), max(known)
    counts = [0] * BINS
    for value in known:
        counts[min(int((value - low) / (high - low) * BINS), BINS - 1) if high > low else 0] += 1
    width, highest = WIDTH / BINS, max(counts)
    bars = [
        Bar(number * width, HEIGHT * (1 - count / highest), width - 2, HEIGHT * count / highest)
        for number, count in enumerate(counts)
        if count
    ]
    return Histogram(title, f"{low:.3g}", f"{high:.3g}", bars)
