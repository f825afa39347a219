"""Whether a retrained model takes the place of the champion: only if it beats it, on the same holdout.

    beats    for every metric of gate.metrics (lower is better): champion - challenger > gate.margin

Every new version gets the alias `challenger`. The first one becomes `champion` at once. The previous champion keeps the
alias `previous_champion`, and stays loadable. The decision, its figures and its reason are tags of the version, lie in
.iterit/registered.json, and are printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from components.settings import GateSettings

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous_champion"


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a challenger, and why."""

    promoted: bool
    reason: str
    challenger: Mapping[str, float]
    champion: Mapping[str, float] | None
    champion_version: str | None
    evaluated_again: bool
    """The champion, because the holdout is another than that it was evaluated on."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def decide(
    challenger: Mapping[str, float],
    champion: Mapping[str, float] | None,
    settings: GateSettings,
    *,
    champion_version: str | None = None,
    evaluated_again: bool = False,
) -> Decision:
    """Compare the metrics on the same holdout; `champion` is None when there is none yet."""
    mine: dict[str, float] = {name: challenger[name] for name in settings.metrics}
    if champion is None:
        return Decision(True, "there was no champion", mine, None, None, False)
    theirs: dict[str, float] = {name: champion[name] for name in settings.metrics}
    behind = [name for name in settings.metrics if not theirs[name] - mine[name] > settings.margin]
    told = ", ".join(f"{name} {mine[name]:.6g} against {theirs[name]:.6g}" for name in behind or settings.metrics)
    outcome = f"does not beat version {champion_version} by {settings.margin:g}"
    if not behind:
        outcome = f"beats version {champion_version}"
    return Decision(not behind, f"{outcome}: {told}", mine, theirs, champion_version, evaluated_again)


def choose(holdouts: Mapping[str, Mapping[str, float]], settings: GateSettings) -> str:
    """The iteration whose checkpoint is registered: the last, or the earliest of the best by the first metric."""
    if settings.register_ == "last":
        return list(holdouts)[-1]
    return min(holdouts, key=lambda key: holdouts[key][settings.metrics[0]])
