"""The gate's decision, how often chance deceives it, and the choice of the checkpoint that is registered."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy import stats

from components.core.settings.gate import GateSettings
from components.data import tables
from components.evaluation.statistics import difference_interval
from components.promotion.gate import Decision, choose, decide

CHAMPION = [2.0, 2.5, 1.5, 2.0]


def gate(**values: Any) -> GateSettings:
    return GateSettings.model_validate(values)


def evaluated(
    losses: Sequence[float | None] | npt.NDArray[np.float64],
    *,
    tokens: Sequence[int] | npt.NDArray[np.int64] | None = None,
    complexity: Sequence[float] | None = None,
) -> pa.Table:
    """tables.EVALUATIONS of records 0, 1, ...; a loss of None is an unscorable record."""
    rows = [
        {
            "id": str(index),
            "source": "texts",
            "tokens": 10 if tokens is None else int(tokens[index]),
            "nll_conditional": loss,
            "nll_unconditional": loss,
            "complexity": None if loss is None else complexity[index] if complexity else 0.5,
        }
        for index, loss in enumerate(losses)
    ]
    return pa.Table.from_pylist(rows, schema=tables.EVALUATIONS)


def less(*improvements: float) -> pa.Table:
    """A challenger that is better by these on the records of CHAMPION."""
    return evaluated([loss - improvement for loss, improvement in zip(CHAMPION, improvements, strict=True)])


def decision_on(challenger: pa.Table, **values: Any) -> Decision:
    return decide(challenger, evaluated(CHAMPION), gate(**values), champion_version="1")


def test_the_first_version_is_promoted_without_a_comparison() -> None:
    decision = decide(evaluated(CHAMPION), None, gate())
    assert decision.promoted
    assert decision.verdict == "champion: there was no champion"
    assert (decision.challenger, decision.champion, decision.champion_version) == ({"loss": 2.0}, None, None)
    assert decision.resolution is None


def test_a_challenger_whose_lower_bound_is_above_0_is_promoted_with_the_figures() -> None:
    decision = decision_on(less(0.5, 0.4, 0.6, 0.5))
    expected = stats.ttest_1samp([0.5, 0.4, 0.6, 0.5], 0)
    interval = expected.confidence_interval(0.95)
    assert decision.promoted
    assert decision.verdict == (
        f"promoted: +0.5000, interval {interval.low:.4f} to {interval.high:.4f}, 4 records; before: version 1"
    )
    (difference,) = decision.differences.values()
    one_sided = stats.ttest_1samp([0.5, 0.4, 0.6, 0.5], 0, alternative="greater").confidence_interval(0.95)
    assert difference.lower_bound == pytest.approx(one_sided.low, abs=1e-6)
    assert (difference.records, difference.confidence, difference.margin) == (4, 0.95, 0.0)
    assert decision.resolution is None


def test_a_lower_loss_that_chance_explains_keeps_the_champion_and_says_what_could_be_shown() -> None:
    decision = decision_on(less(0.9, -0.8, 0.7, -0.4))
    interval = stats.ttest_1samp([0.9, -0.8, 0.7, -0.4], 0).confidence_interval(0.95)
    assert decision.challenger["loss"] < 2.0
    assert not decision.promoted
    assert (
        decision.verdict
        == f"kept: +0.1000, interval {interval.low:.4f} to {interval.high:.4f}, 4 records; champion: version 1"
    )
    error = stats.sem([0.9, -0.8, 0.7, -0.4])
    least = (stats.t.ppf(0.95, 3) + stats.t.ppf(0.8, 3)) * error
    assert decision.resolution == f"4 records can show a difference of {least:.2g} nats or more"


def test_a_challenger_that_is_surely_worse_needs_no_larger_holdout() -> None:
    decision = decision_on(less(-0.5, -0.4, -0.6, -0.5))
    assert not decision.promoted
    assert decision.resolution is None


def test_the_lower_bound_must_be_above_the_margin() -> None:
    exact, more = decision_on(less(*[0.5] * 4), margin=0.5), decision_on(less(*[0.5001] * 4), margin=0.5)
    assert exact.verdict == "kept: +0.5000, interval 0.5000 to 0.5000, 4 records, margin 0.5; champion: version 1"
    assert more.promoted


def test_the_confidence_decides_and_the_bound_is_named_where_the_interval_would_contradict_it() -> None:
    challenger = less(0.1, 0.5, 0.0, 0.4)
    sure, unsure = (decision_on(challenger, confidence=confidence) for confidence in (0.99, 0.9))
    assert not sure.promoted
    assert unsure.promoted
    assert unsure.reason.startswith("+0.2500 (at least +0.0551), interval -0.1288 to 0.6288, 4 records")


def test_the_challenger_must_be_better_in_every_metric() -> None:
    champion = evaluated(CHAMPION, complexity=[0.5, 0.6, 0.4, 0.5])
    challenger = evaluated([1.0, 1.5, 0.5, 1.0], complexity=[0.6, 0.7, 0.5, 0.6])
    decision = decide(challenger, champion, gate(metrics=["loss", "mean_complexity"]), champion_version="2")
    assert not decision.promoted
    assert decision.reason == (
        "loss +1.0000, interval 1.0000 to 1.0000; mean_complexity -0.1000, interval -0.1000 to -0.1000, 4 records; "
        "champion: version 2"
    )
    assert decision.champion == {"loss": 2.0, "mean_complexity": 0.5}


def test_perplexity_has_the_test_of_the_loss() -> None:
    decision = decision_on(less(0.5, 0.4, 0.6, 0.5), metrics=["perplexity", "loss"])
    assert list(decision.differences) == ["loss"]
    assert decision.challenger["perplexity"] == pytest.approx(math.exp(1.5), abs=1e-5)


def test_a_challenger_that_cannot_score_what_the_champion_scores_is_not_better() -> None:
    decision = decision_on(evaluated([0.1, 0.1, 0.1, None]))
    assert decision.verdict == "kept: cannot score 1 of the records that version 1 scores"
    # the reverse counts for nothing: the record is left out of the comparison
    reverse = decide(less(0.5, 0.4, 0.6, 0.5), evaluated([2.0, 2.5, 1.5, None]), gate(), champion_version="1")
    assert (reverse.promoted, reverse.differences["loss"].records) == (True, 3)


def test_a_single_record_promotes_nothing() -> None:
    decision = decide(evaluated([1.0]), evaluated([2.0]), gate(), champion_version="1")
    assert decision.verdict == "kept: +1.0000 without an interval, 1 record; champion: version 1"
    assert decision.resolution == "1 record can show no difference"


def test_a_decision_comes_back_from_json_as_it_was() -> None:
    for decision in (decision_on(less(0.9, -0.8, 0.7, -0.4)), decide(evaluated([1.0]), evaluated([2.0]), gate())):
        text = json.dumps(asdict(decision), allow_nan=False)
        assert Decision.from_json(json.loads(text)) == decision


# --- chance, simulated ------------------------------------------------------------------------------------------------

RETRAININGS = 400
Losses = npt.NDArray[np.float64]


def holdout_of(random: np.random.Generator, records: int) -> tuple[npt.NDArray[np.int64], Losses]:
    """Tokens of the records, and the part of their losses that all models have in common: both skewed."""
    return 1 + random.lognormal(4, 0.8, records).astype(np.int64), random.lognormal(0.8, 0.5, records)


def retrained(random: np.random.Generator, common: Losses) -> Losses:
    """The losses of one training: skewed deviations, by the luck of the seed and of the picks."""
    return common + random.lognormal(-2, 1, len(common))


def promoted_share(records: int, standard_errors: float, seed: int) -> tuple[int, float]:
    """How many of RETRAININGS are promoted that are better by so many standard errors, and this difference in nats."""
    random = np.random.default_rng(seed)
    trainings = []
    for _ in range(RETRAININGS):
        tokens, common = holdout_of(random, records)
        trainings.append((tokens, retrained(random, common), retrained(random, common)))
    differences = [np.average(champion - other, weights=tokens) for tokens, champion, other in trainings]
    better_by = standard_errors * float(np.std(differences))
    decisions = [
        decide(evaluated(other - better_by, tokens=tokens), evaluated(champion, tokens=tokens), gate())
        for tokens, champion, other in trainings
    ]
    return sum(decision.promoted for decision in decisions), better_by


@pytest.mark.parametrize("records", [24, 200])
def test_of_400_retrainings_of_equal_models_at_most_5_percent_are_promoted(records: int) -> None:
    promoted, _ = promoted_share(records, 0, seed=1)
    interval = stats.binomtest(promoted, RETRAININGS).proportion_ci(0.95, method="exact")
    print(f"{records} records: {promoted} of {RETRAININGS}, at most {interval.high:.3f}")
    assert promoted / RETRAININGS <= 0.05
    assert interval.high <= 0.08


@pytest.mark.parametrize(("standard_errors", "least", "most"), [(1, 0.28, 0.45), (2.5, 0.78, 0.9), (4, 0.93, 1.0)])
@pytest.mark.parametrize("records", [24, 200])
def test_a_better_model_is_promoted_as_often_as_the_documents_say(
    records: int, standard_errors: float, least: float, most: float
) -> None:
    promoted, better_by = promoted_share(records, standard_errors, seed=2)
    power = promoted / RETRAININGS
    print(f"{records} records, {standard_errors} standard errors ({better_by:.3f} nats): {power:.3f}")
    assert least <= power <= most


def promotions(looks: int, settings: GateSettings, seed: int, *, new_holdouts: bool) -> int:
    """Of so many retrainings of equal models, each compared with the champion of then on 24 records."""
    random = np.random.default_rng(seed)
    tokens, common = holdout_of(random, 24)
    champion, count = retrained(random, common), 0
    for _ in range(looks):
        if new_holdouts:  # on which the champion is evaluated again
            tokens, common = holdout_of(random, 24)
            champion = retrained(random, common)
        challenger = retrained(random, common)
        difference = difference_interval((champion, tokens), (challenger, tokens))
        if difference.lower_bound(settings.confidence_of_each) > 0:
            champion, count = challenger, count + 1
    return count


@pytest.mark.parametrize(
    ("looks", "horizon", "new_holdouts", "least", "most"),
    [
        (10, 1, False, 0.18, 0.32),
        (52, 1, False, 0.4, 0.6),
        (10, 10, False, 0.0, 0.05),
        (52, 52, False, 0.0, 0.05),
        (10, 1, True, 0.25, 0.5),
        (52, 1, True, 0.85, 1.0),
        (10, 10, True, 0.0, 0.08),
        (52, 52, True, 0.0, 0.08),
    ],
)
def test_a_schedule_promotes_by_chance_as_often_as_the_documents_say(
    looks: int, horizon: int, new_holdouts: bool, least: float, most: float
) -> None:
    settings = gate(horizon=horizon)
    years = [promotions(looks, settings, seed, new_holdouts=new_holdouts) for seed in range(200)]
    share = sum(count > 0 for count in years) / len(years)
    print(f"{looks} looks, horizon {horizon}, new holdouts {new_holdouts}: {share:.3f}, {sum(years) / len(years):.3f}")
    assert least <= share <= most


def test_a_horizon_spends_the_error_over_the_retrainings_and_is_named() -> None:
    assert gate(confidence=0.9, horizon=1).confidence_of_each == 0.9
    assert gate(confidence=0.9, horizon=50).confidence_of_each == pytest.approx(0.998)
    challenger = less(0.5, 0.2, 0.6, 0.3)
    one, year = decision_on(challenger), decision_on(challenger, horizon=52)
    assert one.promoted
    assert not year.promoted
    assert year.verdict.endswith(", 4 records, one of 52 retrainings; champion: version 1")
    assert year.differences["loss"].confidence == 0.999038
    bound = stats.ttest_1samp([0.5, 0.2, 0.6, 0.3], 0, alternative="greater").confidence_interval(1 - 0.05 / 52).low
    assert year.differences["loss"].lower_bound == pytest.approx(bound, abs=1e-5)


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
