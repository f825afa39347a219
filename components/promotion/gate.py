"""The gate's decision: a retrained model replaces the champion only if it is better on the same holdout.

The challenger beats the champion when, for every metric of gate.metrics (lower is better),

    champion - challenger > gate.margin
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
    """Its metrics on the holdout, by name."""
    champion: Mapping[str, float] | None
    """The champion's metrics on the same holdout; None when they were not compared."""
    champion_version: str | None
    evaluated_again: bool
    """Whether the champion was evaluated again, because the holdout has changed since it was registered."""

    @property
    def verdict(self) -> str:
        """The outcome and its reason, for people."""
        return f"{'champion' if self.promoted else 'not the champion'}: {self.reason}"


def decide(
    challenger: Mapping[str, float],
    champion: Mapping[str, float] | None,
    settings: GateSettings,
    *,
    champion_version: str | None = None,
    evaluated_again: bool = False,
) -> Decision:
    """Compare metrics of the same holdout; `champion` is None when there is no champion yet."""
    challenging: dict[str, float] = {name: challenger[name] for name in settings.metrics}
    if champion is None:
        return Decision(True, "there was no champion", challenging, None, None, False)
    reigning: dict[str, float] = {name: champion[name] for name in settings.metrics}
    not_better = [name for name in settings.metrics if not reigning[name] - challenging[name] > settings.margin]
    if not_better:
        outcome = f"does not beat version {champion_version} by {settings.margin:g}"
    else:
        outcome = f"beats version {champion_version}"
    figures = ", ".join(
        f"{name} {challenging[name]:.6g} against {reigning[name]:.6g}" for name in not_better or settings.metrics
    )
    return Decision(not not_better, f"{outcome}: {figures}", challenging, reigning, champion_version, evaluated_again)


def choose(holdouts: Mapping[str, Mapping[str, float]], settings: GateSettings) -> str:
    """The iteration whose checkpoint is registered: the last, or the best by the first metric, of equals the earliest.

    `holdouts`: iteration -> metrics on the holdout, in the order of the iterations.
    """
    if settings.register_ == "last":
        return list(holdouts)[-1]
    return min(holdouts, key=lambda key: holdouts[key][settings.metrics[0]])
