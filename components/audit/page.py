"""A checkpoint's chain as one self-contained HTML page: no network, no library, opens from a mail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

BINS = 20


WIDTH, HEIGHT = 320, 90  # of a chart, in pixels


def render(found: dict[str, Any]) -> str:
    """The page of what components.audit.describe has found, with every record."""
    chain = [{"name": "base model", "digest": found["base_model"]["digest"]}]
    chain += [{"name": f"iteration {step['iteration']}", "digest": step["checkpoint"]} for step in found["iterations"]]
    charts = {
        step["iteration"]: {
            name: _histogram([pick[name] for pick in step["picks"]]) for name in ("complexity", "diversity")
        }
        for step in found["iterations"]
    }
    environment = Environment(autoescape=True, loader=FileSystemLoader(Path(__file__).parent))
    template = environment.get_template("page.html.j2")
    return template.render(found=found, chain=chain, charts=charts, width=WIDTH, height=HEIGHT)


def _histogram(values: Sequence[float | None]) -> dict[str, Any]:
    """Bars of equal width between the lowest and the highest value."""
    known = [value for value in values if value is not None]
    if not known:
        return {"bars": [], "low": "-", "high": "-"}
    low, high = min(known), max(known)
    counts = [0] * BINS
    for value in known:
        counts[min(int((value - low) / (high - low) * BINS), BINS - 1) if high > low else 0] += 1
    wide, most = WIDTH / BINS, max(counts)
    bars = [
        {"x": number * wide, "y": HEIGHT * (1 - count / most), "width": wide - 2, "height": HEIGHT * count / most}
        for number, count in enumerate(counts)
        if count
    ]
    return {"bars": bars, "low": f"{low:.3g}", "high": f"{high:.3g}"}
