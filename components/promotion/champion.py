"""Moves the champion: through the gate after a retraining, or by hand.

Every new version gets the alias `challenger`. The first one becomes `champion` at once. The previous champion keeps the
alias `previous_champion`, and stays loadable. The decision, its figures and its reason are tags of the version.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from components.core.errors import UserError
from components.core.params import load_settings
from components.core.paths import SCRATCH
from components.core.settings.pipeline import Settings
from components.promotion.gate import Decision, decide
from components.provenance.digests import file_digest
from components.tracking import registry
from components.tracking.registry import CHALLENGER, CHAMPION, HOLDOUT_DIGEST, PREVIOUS_CHAMPION


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered version that asks for promotion."""

    model: str
    version: str
    holdout: Mapping[str, float]
    """Its metrics on the holdout."""


def pass_gate(
    candidate: Candidate, holdout: Path, settings: Settings, arithmetic: AbstractContextManager[object]
) -> Decision:
    """Make the version the challenger, and the champion if it beats the present one on this holdout."""
    champion = registry.version_with_alias(candidate.model, CHAMPION)
    if champion is not None and champion.number == candidate.version:
        decision = Decision(True, "is the champion already", candidate.holdout, None, candidate.version, False)
    elif champion is None:
        decision = decide(candidate.holdout, None, settings.gate)
    else:
        again = champion.tags.get(HOLDOUT_DIGEST) != file_digest(holdout)
        if again:
            figures = evaluate_again(candidate.model, champion.number, holdout, settings, arithmetic)
        else:
            figures = {name: float(champion.tags[f"holdout.{name}"]) for name in settings.gate.metrics}
        decision = decide(
            candidate.holdout, figures, settings.gate, champion_version=champion.number, evaluated_again=again
        )
    registry.set_alias(candidate.model, CHALLENGER, candidate.version)
    registry.tag_version(candidate.model, candidate.version, {"iterit.gate": json.dumps(asdict(decision))})
    if decision.promoted:
        registry.promote(candidate.model, candidate.version, "gate")
    return decision


def evaluate_again(
    name: str, number: str, holdout: Path, settings: Settings, arithmetic: AbstractContextManager[object]
) -> Mapping[str, float]:
    """The metrics of a registered version on a holdout that it was not evaluated on; its files are downloaded."""
    from components.data.records import read_records
    from components.evaluation.holdout import measure
    from components.model.load import load_model

    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        checkpoint = registry.download_version(name, number, Path(folder))
        model, tokenizer = load_model(checkpoint, settings.score.dtype)
        what = f"evaluate {name} version {number} again"
        return asdict(measure(model, tokenizer, read_records(holdout), settings.score, what, arithmetic))


def promote_by_hand(number: str) -> str:
    """Make a version the champion, and say what changed. Raises UserError for a version that does not exist."""
    name = load_settings().register_.name
    if not registry.has_version(name, number):
        raise UserError(f"{name} has no version {number}")
    before = registry.promote(name, number, "hand")
    return f"{name} version {number} is the champion" + (f"; before it was version {before}" if before else "")


def roll_back() -> str:
    """Make the previous champion the champion again. Raises UserError when there is none."""
    name = load_settings().register_.name
    previous = registry.version_with_alias(name, PREVIOUS_CHAMPION)
    if previous is None:
        raise UserError(f"{name} has no previous champion")
    return promote_by_hand(previous.number)
