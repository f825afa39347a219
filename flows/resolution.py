"""How small a difference the holdout can show: said before the training, and again at the end where it is too small."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.core.settings.pipeline import Settings
from components.promotion.gate import Decision
from components.promotion.resolution import Resolution, foresee

if TYPE_CHECKING:
    from flows.recording import Logger


def say_what_the_holdout_can_show(settings: Settings, logger: Logger) -> bool:
    """Log it in one line, as a warning where it is too small. Returns False where nothing is known of it yet."""
    foreseen = _foresee(settings)
    if foreseen is not None:
        log = logger.warning if foreseen.is_too_small else logger.info
        log("gate: %s", foreseen)
    return foreseen is not None


def too_small_after_all(settings: Settings, decision: Decision) -> str | None:
    """The warning for the end of a run; None where the holdout is large enough, or the gate has found a difference."""
    if decision.promoted and decision.champion is not None:
        return None
    foreseen = _foresee(settings)
    return str(foreseen) if foreseen is not None and foreseen.is_too_small else None


def _foresee(settings: Settings) -> Resolution | None:
    return foresee(settings.gate, list(settings.iterations), Path("metrics"), Path("data/evaluations"))
