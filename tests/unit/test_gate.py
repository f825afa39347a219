"""The gate's decision, and the choice of the checkpoint that is registered."""

from __future__ import annotations

from typing import Any

import pytest

from components.core.settings.gate import GateSettings
from components.promotion.gate import choose, decide

CHAMPION = {"loss": 2.0, "perplexity": 7.5, "mean_complexity": 0.5}


def gate(**values: Any) -> GateSettings:
    return GateSettings.model_validate(values)


def test_the_first_version_is_promoted_without_a_comparison() -> None:
    decision = decide(CHAMPION, None, gate())
    assert decision.promoted
    assert decision.verdict == "champion: there was no champion"
    assert (decision.challenger, decision.champion, decision.champion_version) == ({"loss": 2.0}, None, None)


def test_only_a_lower_loss_is_promoted() -> None:
    better = decide({"loss": 1.5}, CHAMPION, gate(), champion_version="1")
    assert (better.promoted, better.reason) == (True, "beats version 1: loss 1.5 against 2")
    for loss in (2.0, 2.5):
        other = decide({"loss": loss}, CHAMPION, gate(), champion_version="1")
        assert not other.promoted
        assert other.verdict == f"not the champion: does not beat version 1 by 0: loss {loss:g} against 2"


def test_the_challenger_must_be_better_by_more_than_the_margin() -> None:
    exact, more = (decide({"loss": loss}, CHAMPION, gate(margin=0.5), champion_version="3") for loss in (1.5, 1.4999))
    assert (exact.promoted, exact.reason) == (False, "does not beat version 3 by 0.5: loss 1.5 against 2")
    assert more.promoted


def test_the_challenger_must_be_better_in_every_metric_and_the_reason_names_those_in_which_it_is_not() -> None:
    settings = gate(metrics=["loss", "mean_complexity"])
    decision = decide({"loss": 1.0, "mean_complexity": 0.6}, CHAMPION, settings, champion_version="2")
    assert not decision.promoted
    assert decision.reason == "does not beat version 2 by 0: mean_complexity 0.6 against 0.5"
    assert decision.champion == {"loss": 2.0, "mean_complexity": 0.5}


def test_a_metric_that_is_not_a_number_is_not_better() -> None:
    assert not decide({"loss": float("nan")}, CHAMPION, gate(), champion_version="1").promoted


def test_the_decision_keeps_whether_the_champion_was_evaluated_again() -> None:
    assert decide({"loss": 1.0}, CHAMPION, gate(), champion_version="1", evaluated_again=True).evaluated_again


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, "3"),
        ({"register": "best"}, "1"),  # of equals the earliest
        ({"register": "best", "metrics": ["perplexity", "loss"]}, "2"),
    ],
)
def test_the_last_checkpoint_or_the_best_by_the_first_metric_is_chosen(settings: dict[str, Any], chosen: str) -> None:
    holdouts = {
        "1": {"loss": 1.0, "perplexity": 3.0},
        "2": {"loss": 1.0, "perplexity": 2.0},
        "3": {"loss": 1.5, "perplexity": 4.0},
    }
    assert choose(holdouts, gate(**settings)) == chosen
