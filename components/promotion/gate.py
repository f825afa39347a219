"""Decides whether a retrained model replaces the champion: only if it beats it on the same holdout.

beats    for every metric of gate.metrics (lower is better): champion - challenger > gate.margin
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.core.settings.gate import GateSettings


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a challenger was promoted, and why."""

    promoted: bool
    reason: str
    challenger: Mapping[str, float]
    champion: Mapping[str, float] | None
    champion_version: str | None
    evaluated_again: bool
    """Whether the champion was: the holdout has changed since it was evaluated."""


def decide(
    challenger: Mapping[str, float],
    champion: Mapping[str, float] | None,
    settings: GateSettings,
    *,
    champion_version: str | None = None,
    evaluated_again: bool = False,
) -> Decision:
    """Compare the metrics on the same holdout; `champion` is None when there is none yet."""
    challenging: dict[str, float] = {name: challenger[name] for name in settings.metrics}
    if champion is None:
        return Decision(True, "there was no champion", challenging, None, None, False)
    reigning: dict[str, float] = {name: champion[name] for name in settings.metrics}
    behind = [name for name in settings.metrics if not reigning[name] - challenging[name] > settings.margin]
    figures = ", ".join(
        f"{name} {challenging[name]:.6g} against {reigning[name]:.6g}" for name in behind or settings.metrics
    )
    outcome = f"does not beat version {champion_version} by {settings.margin:g}"
    if not behind:
        outcome = f"beats version {champion_version}"
    return Decision(not behind, f"{outcome}: {figures}", challenging, reigning, champion_version, evaluated_again)


def choose(holdouts: Mapping[str, Mapping[str, float]], settings: GateSettings) -> str:
    """The iteration whose checkpoint is registered: the last, or the earliest of the best by the first metric."""
    if settings.register_ == "last":
        return list(holdouts)[-1]
    return min(holdouts, key=lambda key: holdouts[key][settings.metrics[0]])
